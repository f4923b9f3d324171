"""What every command of `launch/` does the same way."""

import contextlib
from collections.abc import Iterator

from absl import logging

from ldm_scaling.hosts import joined


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


@contextlib.contextmanager
def running(command: str) -> Iterator[None]:
    """`explained`, in one process or as one of several: see `hosts.joined` and its flags."""
    with explained(command), joined(), explained(command):
        yield
