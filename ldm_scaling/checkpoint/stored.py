"""Arrays that are still in their file: known by name and shape, read when they are asked for.

A checkpoint of many gigabytes is converted array by array, so that it is never in memory twice.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array that is read anew by each `np.asarray` of it.

    Attributes:
      shape: of the array.
      read: makes it.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array in a file cannot be had without a copy")
        return np.asarray(self.read(), dtype)

    def __getitem__(self, index: Any) -> "Stored":
        """The part of a basic index, not read yet either."""
        part = np.broadcast_to(np.empty((), np.uint8), self.shape)[index]
        return Stored(part.shape, lambda: self.read()[index])


AnyArray: TypeAlias = np.ndarray | Stored


def open_safetensors(path: str | os.PathLike[str]) -> Mapping[str, AnyArray]:
    """Name -> array of a file on disk, not read yet; a file of a bucket is read at once.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is torn, or no safetensors.
    """
    file = epath.Path(path)
    name = os.fspath(file)
    try:
        if "://" in name:
            return safetensors.numpy.load(file.read_bytes())
        with safetensors.safe_open(name, "numpy") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in list(opened.keys())}
    except safetensors.SafetensorError as error:
        size = file.stat().length
        raise ValueError(f"{path}: torn or not safetensors, {size} bytes ({error})") from error
    return {key: Stored(shape, _reader(name, key)) for key, shape in shapes.items()}


def _reader(path: str, name: str) -> Callable[[], np.ndarray]:
    # Opened for each array: the pages of a file that stays open count as memory of this process.
    def read() -> np.ndarray:
        with safetensors.safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    return read
