"""What every command of `launch/` does the same way."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from absl import logging
from etils import epath

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


@dataclass(frozen=True)
class Progress:
    """How far a run is: its newest step, the step it is to reach, and whether it is all done."""

    step: int
    goal: int | None
    finished: bool

    def __str__(self) -> str:
        return f"step {self.step} of {'?' if self.goal is None else self.goal}"


def progress(workdir: str | os.PathLike[str]) -> Progress:
    """Tells from the files of a run alone how far it is, wherever it trains or trained.

    Args:
      workdir: of the run, local or a URL (`gs://...`).

    Returns:
      step: of the exported result or of the newest checkpoint; 0: there is neither.
      goal: `num_steps` of the config; None before the run has begun.
      finished: whether the result of the last step is exported.

    Raises:
      ValueError: a file is there but not what a run writes; names it.
    """
    folder = epath.Path(workdir)
    goal = _whole_number(folder / "config.json", "num_steps")
    exported = _whole_number(folder / "export" / "final" / "training.json", "step") or 0
    checkpoints = folder / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
    saved = [int(name) for name in names if name.isdecimal()]  # others are not whole yet
    return Progress(
        step=max([exported, *saved]), goal=goal, finished=goal is not None and exported >= goal
    )


def _whole_number(path: epath.Path, field: str) -> int | None:
    if not path.exists():
        return None
    try:
        return int(json.loads(path.read_text())[field])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no whole number under {field!r}") from error
