"""Files that are there whole or not at all, whatever stops the process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from absl import logging


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write(file)` on a file beside `path`, then moves it there; makes the folder.

    Processes that write the same path at the same time do not disturb each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def cached_array(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in `path` (.npy), computed and written there where it is missing or damaged."""
    if path.exists():
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            logging.warning("%s: computed anew, the cached one is damaged (%s)", path, error)
    array = compute()
    write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))
    return array
