"""One rule between the names of our parameters and those in diffusers' and transformers' files.

    down_blocks_0 / resnets_1 / conv1 / kernel    <->    down_blocks.0.resnets.1.conv1.weight

A module name that ends in a number is an entry of a list there; leaves are called as PyTorch calls
them; convolutions are stored [out, in, height, width] and linear layers [out, in], ours
[height, width, in, out] and [in, out]. A pair of linear layers of one input is stored as one of
twice the outputs, ours as [2, in, out]. The template (the shapes of our network) decides which of
them a weight is, so a 1x1 convolution and a linear layer are never confused.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from ldm_scaling.checkpoint.merge import KeyMismatchError, key_diff
from ldm_scaling.checkpoint.stored import AnyArray, Stored
from ldm_scaling.types import Params

_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# Names that end in a number there too, not entries of a list: the two layers of the time embedding,
# those of T5's gated feed-forward, and the convolutions along a branch of Inception.
_NOT_IN_A_LIST = re.compile(r"linear_[12]|wi_[01]|branch\w+_\d")
# Axes of a kernel, by its rank: from ours to the file's.
_TO_FILE = {4: (3, 2, 0, 1), 3: (0, 2, 1), 2: (1, 0)}


def file_name(path: tuple[str, ...]) -> str:
    """("down_blocks_0", "conv1", "kernel") -> "down_blocks.0.conv1.weight"."""
    *modules, leaf = path
    parts = [m if _NOT_IN_A_LIST.fullmatch(m) else re.sub(r"_(\d+)$", r".\1", m) for m in modules]
    return ".".join([*parts, _LEAF_NAMES.get(leaf, leaf)])


def file_shapes(template: Params) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a file of these parameters has."""
    flat = traverse_util.flatten_dict(dict(template))
    return {file_name(path): _file_shape(path, leaf.shape) for path, leaf in flat.items()}


def to_file(params: Params) -> dict[str, Stored]:
    """Parameters -> what a PyTorch state dict of the same network holds, C-contiguous arrays.

    Each is made when it is asked for, so that the whole is not in memory a second time.
    """

    def entry(path: tuple[str, ...], leaf: Any) -> Stored:
        return Stored(_file_shape(path, leaf.shape), lambda: _to_file(path, np.asarray(leaf)))

    flat = traverse_util.flatten_dict(dict(params))
    return {file_name(path): entry(path, leaf) for path, leaf in flat.items()}


def from_file(template: Params, state: Mapping[str, AnyArray], source: str) -> dict[str, Any]:
    """State dict -> parameters, numpy float32, in the template's structure.

    Args:
      template: tree of `jax.ShapeDtypeStruct` or arrays.
      state: name -> array of any float dtype; read one at a time, none is kept.
      source: where the state comes from, for the message.

    Raises:
      KeyMismatchError: a name is missing or unexpected, or a shape differs.
    """
    # A tuple is a leaf here: names are already flat.
    if diff := key_diff(file_shapes(template), state):
        raise KeyMismatchError(diff, source)
    flat = {
        path: _from_file(path, state[file_name(path)], leaf.shape).astype(np.float32, copy=False)
        for path, leaf in traverse_util.flatten_dict(dict(template)).items()
    }
    return traverse_util.unflatten_dict(flat)


def _axes(path: tuple[str, ...], rank: int) -> tuple[int, ...]:
    same = tuple(range(rank))
    return _TO_FILE.get(rank, same) if path[-1] == "kernel" else same


def _is_pair(path: tuple[str, ...], rank: int) -> bool:
    return (path[-1], rank) in (("kernel", 3), ("bias", 2))


def _file_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    ordered = tuple(shape[axis] for axis in _axes(path, len(shape)))
    return (ordered[0] * ordered[1], *ordered[2:]) if _is_pair(path, len(shape)) else ordered


def _to_file(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    ordered = np.asarray(array.transpose(_axes(path, array.ndim)), order="C")
    return ordered.reshape(_file_shape(path, array.shape))


def _from_file(path: tuple[str, ...], array: AnyArray, shape: tuple[int, ...]) -> np.ndarray:
    axes = _axes(path, len(shape))
    ordered = np.asarray(array).reshape(tuple(shape[axis] for axis in axes))
    return np.asarray(ordered.transpose(np.argsort(axes)), order="C")
