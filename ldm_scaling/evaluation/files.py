"""Files that are there whole or not at all, whatever stops the process; and arrays of others."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from absl import logging

# Photographs and statistics hardly shrink at all: what does so a hundredfold is made to.
MAX_EXPANSION = 100
SMALL = 2**28  # bytes that an array may always take: 256 MiB


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


@contextlib.contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of anyone's .npz file by name, each read when it is asked for.

    Raises, on opening or where an array is read:
      FileNotFoundError: no such file.
      ValueError: it is torn, no .npz or holds objects, or an array would take more than `SMALL`
        bytes and `MAX_EXPANSION` times its room in the file; nothing is unpacked then.
    """
    try:
        with open(path, "rb") as file:  # NumPy leaves a torn one open
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array (.npy)")
            assert arrays.zip is not None  # it is open
            for member in arrays.zip.infolist():
                if member.file_size > max(SMALL, MAX_EXPANSION * member.compress_size):
                    raise ValueError(
                        f"{member.filename} would grow from {member.compress_size} bytes to "
                        f"{member.file_size}, which is taken for a decompression bomb"
                    )
            yield arrays
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: no .npz file that can be read: {error}") from error
