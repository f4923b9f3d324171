"""Which axis of which array lies on which axis of the mesh.

Sharding is data beside the models, not annotations inside them: a rule reads the shape of a
parameter and answers with a `PartitionSpec`; the compiler derives the collectives.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("replica", "fsdp")
"""Examples are spread over both: every device of the two axes sees its own examples."""

MIN_SHARD_SIZE = 2**14
"""Smaller arrays are replicated: gathering them costs more latency than it saves memory."""


def fsdp_spec(shape: tuple[int, ...], fsdp: int, min_size: int = MIN_SHARD_SIZE) -> PartitionSpec:
    """Shards the largest axis that `fsdp` divides (the last one of equals); else replicates.

    Fully sharded data parallelism (ZeRO stage 3, arXiv:1910.02054): each device of the axis owns a
    slice of the weights, and gathers the rest when a layer needs it.
    """
    divisible = [axis for axis, size in enumerate(shape) if size and size % fsdp == 0]
    if fsdp == 1 or not divisible or math.prod(shape) < min_size:
        return PartitionSpec()
    chosen = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*("fsdp" if axis == chosen else None for axis in range(chosen + 1)))


def param_shardings(mesh: Mesh, params: Any, min_size: int = MIN_SHARD_SIZE) -> Any:
    """The FSDP sharding of every array (or abstract array) of `params`, as a tree like it."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(lambda p: NamedSharding(mesh, fsdp_spec(p.shape, fsdp, min_size)), params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over `BATCH_AXES`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())
