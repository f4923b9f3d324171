"""What every command of `launch/` does the same way."""

import contextlib
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def explained(command: str) -> Iterator[None]:
    """Ends the command with one line instead of a traceback where what it was given is at fault.

    `--verbosity=1` shows the traceback all the same.
    """
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as error:
        logging.debug("The whole story:", exc_info=True)
        raise SystemExit(f"{command}: {error}") from error
