"""Which axis of which array lies on which axis of the mesh.

Sharding is data beside the models, not annotations inside them: a rule reads the name and shape of
a parameter and answers with a `PartitionSpec`; the compiler derives the collectives.
"""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ldm_scaling.placement import BATCH_AXES
from ldm_scaling.sharding.tensor import Axes, matched

MIN_SHARD_SIZE = 2**14
"""Smaller arrays are replicated: gathering them costs more latency than it saves memory."""


TILE = (8, 128)
"""A TPU keeps the last two axes of an array in tiles of this size, and fills up what is short."""


def fsdp_spec(
    shape: tuple[int, ...],
    fsdp: int,
    min_size: int = MIN_SHARD_SIZE,
    tensor: Axes | None = None,
) -> PartitionSpec:
    """Shards one axis that `fsdp` divides, else replicates.

    Fully sharded data parallelism (ZeRO stage 3, arXiv:1910.02054): each device of the axis owns a
    slice of the weights, and gathers the rest when a layer needs it. The axis is the one whose
    slices take the least memory in tiles, the largest of equals, the first of those. 64 slices of
    the last axis of a [3, 3, 320, 320] kernel, 5 wide, would take 26 times their size. The first,
    because a TPU's compiler sums the gradient of a square kernel that is cut along its outputs on
    every device in full (seen with [3, 3, 2048, 2048] over 16 of 64 chips), and scatters the sum
    of one that is cut along its inputs.

    Args:
      shape: of the parameter.
      fsdp: size of the mesh's axis.
      min_size: parameters of fewer elements are not sharded.
      tensor: which axis tensor parallelism has taken already, see `tensor.matched`.
    """
    axes = list(tensor or (None,) * len(shape))
    divisible = [
        axis for axis, size in enumerate(shape) if size and size % fsdp == 0 and axes[axis] is None
    ]
    if fsdp > 1 and divisible and math.prod(shape) >= min_size:

        def tiled(axis: int) -> int:
            return tiled_size((*shape[:axis], shape[axis] // fsdp, *shape[axis + 1 :]))

        axes[min(divisible, key=lambda axis: (tiled(axis), -shape[axis], axis))] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def tiled_size(shape: tuple[int, ...]) -> int:
    """Elements that an array takes in a TPU's memory, its last two axes filled up to `TILE`."""
    tile = (1,) * len(shape) + TILE
    padded = (
        -(-size // unit) * unit for size, unit in zip(shape, tile[-len(shape) :], strict=True)
    )
    return math.prod(padded)


def param_shardings(mesh: Mesh | AbstractMesh, params: Any, min_size: int = MIN_SHARD_SIZE) -> Any:
    """The sharding of every array (or abstract array) of `params`, as a tree like it.

    Tensor rules first, then the FSDP rule on the axes that they leave. Raises as `tensor.matched`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    named = {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
    split = matched(named, mesh.shape["tensor"])
    specs = [
        fsdp_spec(shape, mesh.shape["fsdp"], min_size, split.get(name))
        for name, shape in named.items()
    ]
    return jax.tree.unflatten(structure, [NamedSharding(mesh, spec) for spec in specs])


def path_name(path: tuple[Any, ...]) -> str:
    """("down_blocks_0", "conv1", "kernel") as JAX gives it -> "down_blocks_0/conv1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over `BATCH_AXES`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())
