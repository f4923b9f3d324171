"""A table of where every parameter lies, and why what is replicated is."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from ldm_scaling.sharding.rules import MIN_SHARD_SIZE, param_shardings, path_name


class Placement(NamedTuple):
    """Where one parameter lies.

    Attributes:
      name: "down_blocks_0/resnets_0/conv1/kernel".
      shape: of the whole parameter.
      spec: mesh axis of each of its axes, "-" for none; "" where it is replicated.
      bytes: of all of it.
      bytes_per_device: of the part that a device holds.
      reason: why it is not spread over the fsdp axis; "" where it is.
    """

    name: str
    shape: tuple[int, ...]
    spec: str
    bytes: int
    bytes_per_device: int
    reason: str


def placements(
    mesh: Mesh | AbstractMesh, params: Any, min_size: int = MIN_SHARD_SIZE
) -> list[Placement]:
    """One row for each array (or abstract array) of `params`, by `param_shardings`' rules."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    shardings = jax.tree.leaves(param_shardings(mesh, params, min_size))
    rows = []
    for (path, leaf), sharding in zip(leaves, shardings, strict=True):
        itemsize = np.dtype(leaf.dtype).itemsize
        rows.append(
            Placement(
                name=path_name(path),
                shape=tuple(leaf.shape),
                spec=", ".join(axis or "-" for axis in sharding.spec),
                bytes=itemsize * math.prod(leaf.shape),
                bytes_per_device=itemsize * math.prod(sharding.shard_shape(tuple(leaf.shape))),
                reason=_reason(mesh, tuple(leaf.shape), sharding.spec, min_size),
            )
        )
    return rows


def explain(
    mesh: Mesh | AbstractMesh, trees: dict[str, Any], min_size: int = MIN_SHARD_SIZE
) -> str:
    """The table in words, for each named tree, with sums and what stays replicated.

    Args:
      mesh: of the run, or of its sizes alone.
      trees: title -> parameters, such as {"trained": ..., "frozen": ...}.
      min_size: as `param_shardings`.
    """
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return "\n\n".join(
        [f"Mesh: {sizes}", *(_table(t, placements(mesh, p, min_size)) for t, p in trees.items())]
    )


def _reason(
    mesh: Mesh | AbstractMesh, shape: tuple[int, ...], spec: Iterable[Any], min_size: int
) -> str:
    fsdp, spec = mesh.shape["fsdp"], tuple(spec)
    if "fsdp" in spec:
        return ""
    if fsdp == 1:
        return "the fsdp axis has size 1"
    if math.prod(shape) < min_size:
        return f"fewer than {min_size} elements"
    return f"no free axis divides by {fsdp}"


def _table(title: str, rows: list[Placement]) -> str:
    header = ("parameter", "shape", "spec", "bytes per device", "not spread because")
    cells = [
        (row.name, "x".join(map(str, row.shape)), row.spec, f"{row.bytes_per_device:,}", row.reason)
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *cells]
    ]
    total, held = (
        sum(getattr(row, name) for row in rows) for name in ("bytes", "bytes_per_device")
    )
    kept = [row for row in rows if row.reason]
    return "\n".join(
        [
            f"{title}: {len(rows)} arrays, {total:,} bytes in all, {held:,} on each device; "
            f"{len(kept)} arrays of {sum(row.bytes for row in kept):,} bytes are not spread",
            *lines,
        ]
    )
