"""What a source of examples is, and the one held in memory."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

Example: TypeAlias = dict[str, Any]
"""Of an image source: "image" uint8 [H, W, 3], "caption" str, "example_id" int, "group" str, ..."""


class DataError(ValueError):
    """Data that cannot be used as it is: missing, empty, or too much of it damaged."""


@runtime_checkable
class Source(Protocol):
    """Random access to examples. `source[i]` is the same in every process and on every call."""

    def __len__(self) -> int:
        """How many examples."""

    def __getitem__(self, index: int) -> Example:
        """Example `index`, 0 <= index < len."""


@runtime_checkable
class GatherSource(Source, Protocol):
    """A source that also hands out many examples at once, faster than one by one."""

    def take(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, stacked along a first axis."""


@runtime_checkable
class UndecodedSource(Source, Protocol):
    """A source of image files, which leaves it to the transform how much of them to decode."""

    def undecoded(self, index: int) -> Example:
        """Example `index`, its "image" as the bytes of the file (or decoded, if it has none)."""


class ArraySource:
    """Arrays in memory as a source.

    Args:
      arrays: name -> array [N, ...]; all of one length. Strings may be any NumPy string or object
        array. "example_id" (unique int) is 0..N-1 where it is not given.

    Raises:
      DataError: no arrays, or unequal lengths.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        lengths = {name: len(array) for name, array in arrays.items()}
        if not lengths or len(set(lengths.values())) > 1 or not min(lengths.values()):
            raise DataError(f"arrays={lengths}: all need one and the same length of at least 1")
        self._length = next(iter(lengths.values()))
        self.arrays = {name: _objects_for_strings(array) for name, array in arrays.items()}
        ids = self.arrays.get("example_id", np.arange(self._length))
        self.arrays["example_id"] = ids.astype(np.int32)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return {name: array[index] for name, array in self.arrays.items()}

    def take(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`: name -> array [len(indices), ...]."""
        index = np.asarray(indices)
        return {name: array[index] for name, array in self.arrays.items()}


def stack(examples: Iterable[Example], count: int) -> dict[str, np.ndarray]:
    """Stacks `count` examples to arrays [N, ...]; strings and lists to object arrays [N].

    Images are copied to their place as they come: large memory that is used again at once costs
    much less than new memory for each.

    Raises:
      DataError: examples of different keys or shapes.
    """
    kept: list[Example] = []
    images: np.ndarray | None = None
    for example in examples:
        image = example.get("image")
        if isinstance(image, np.ndarray):
            if images is None:
                images = np.empty((count, *image.shape), image.dtype)
            if (image.shape, image.dtype) == (images.shape[1:], images.dtype):
                images[len(kept)] = image
                example = {**example, "image": images[len(kept)]}
        kept.append(example)
    return {name: _stack_feature(name, kept, images) for name in kept[0]}


def _stack_feature(name: str, examples: Sequence[Example], images: np.ndarray | None) -> np.ndarray:
    missing = next((i for i, example in enumerate(examples) if name not in example), None)
    if missing is not None:
        found = examples[missing].get("example_id")
        raise DataError(f"{name}: example_id={found} has none, others have")
    values = [example[name] for example in examples]
    if images is not None and all(getattr(value, "base", None) is images for value in values):
        return images
    if isinstance(values[0], str | list | tuple):
        objects = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):  # one assignment would unpack lists
            objects[i] = value
        return objects
    try:
        return np.stack([np.asarray(value) for value in values])
    except ValueError as error:
        shapes = ", ".join(sorted({str(np.shape(value)) for value in values}))
        raise DataError(
            f"{name}: cannot be stacked, the shapes are {shapes}; `Resize` makes images equal"
        ) from error


def _objects_for_strings(array: np.ndarray) -> np.ndarray:
    """Strings as Python objects, so that a batch holds `str` whatever its source."""
    array = np.asarray(array)
    return array.astype(object) if array.dtype.kind == "U" else array
