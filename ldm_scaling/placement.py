"""The names of the mesh's axes, and how arrays inside a network are held to them.

Networks do not know on how many devices they run. Two things they have to say all the same: that
examples stay where they are (else the compiler may move activations where it should gather
weights), and how a kernel that the compiler cannot split is split. Both read the mesh that is in
use while a program is traced (`jax.sharding.use_abstract_mesh`), and do nothing where none is.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

AXES = ("replica", "fsdp", "tensor")
"""replica: copies of the model; fsdp: slices of weights and batch; tensor: slices of a layer."""

BATCH_AXES = ("replica", "fsdp")
"""Examples are spread over both: every device of the two axes sees its own examples."""


def keep_examples_apart(x: jax.Array) -> jax.Array:
    """x [B, ...] with its examples spread over `BATCH_AXES`, other axes as the compiler likes."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *free))


def on_each_device(function: Callable[..., Any], spec: PartitionSpec) -> Callable[..., Any]:
    """`function` of arrays that all lie as `spec` says, run on each device's part alone."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)
