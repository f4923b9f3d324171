"""What a process holds of arrays that are spread over the devices of many.

A process sees only the values on its own devices. Which rows of a batch those need depends on
where the mesh has put them: on a torus they are rarely neighbours, and where the tensor axis spans
processes, several of them need the same rows.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_scaling.placement import BATCH_AXES
from ldm_scaling.sharding.mesh import check_batch
from ldm_scaling.sharding.rules import batch_sharding, replicated


def local_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> tuple[int, ...] | None:
    """Ascending rows of a global batch that a process' devices need; None: all of them.

    Args:
      mesh: of the run.
      batch_size: of the global batch.
      process: default: this one.

    Raises:
      ValueError: the batch cannot be cut into equal parts for the replica and fsdp axes.
    """
    blocks, count = _blocks(mesh, jax.process_index() if process is None else process)
    check_batch(mesh, batch_size)
    if len(blocks) == count:
        return None
    size = batch_size // count
    return tuple(row for block in blocks for row in range(block * size, (block + 1) * size))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Places this process' `local_rows` (numpy arrays [rows, ...]) as global arrays [B, ...]."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    blocks, count = _blocks(mesh, jax.process_index())

    def place(x: np.ndarray) -> jax.Array:
        if len(x) % len(blocks):
            raise ValueError(
                f"a batch of {len(x)} rows on this process: must be a multiple of the "
                f"{len(blocks)} parts of the batch that its devices hold"
            )
        size = len(x) // len(blocks)

        def rows(index: Any) -> np.ndarray:
            start = size * blocks.index((index[0].start or 0) // size)
            return x[start : start + size]

        return jax.make_array_from_callback((size * count, *x.shape[1:]), sharding, rows)

    return jax.tree.map(place, batch)


def put_whole(tree: Any, shardings: Any) -> Any:
    """Places numpy arrays that every process holds whole; each device takes what it needs."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def place(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree, shardings)


def fetch(mesh: Mesh, tree: Any) -> Any:
    """Global arrays as numpy arrays on the first process, None instead on the others.

    All processes have to call it. Array by array, so that no device holds more than one array
    whole, and no process but the first any.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    gather = jax.jit(_same, out_shardings=replicated(mesh))
    first = jax.process_index() == 0

    def collect(x: jax.Array) -> np.ndarray | None:
        whole = gather(x).addressable_data(0)
        whole.block_until_ready()  # else the next one is gathered while this one is still there
        return np.asarray(whole) if first else None

    return jax.tree.map(collect, tree)


def _same(x: jax.Array) -> jax.Array:
    return x


def _blocks(mesh: Mesh, process: int) -> tuple[list[int], int]:
    """(parts of the batch that lie on the devices of a process, number of parts)."""
    axes = [mesh.axis_names.index(axis) for axis in BATCH_AXES]
    devices = np.moveaxis(mesh.devices, axes, range(len(axes)))
    parts = devices.reshape(int(np.prod(devices.shape[: len(axes)])), -1)
    owned = [i for i, part in enumerate(parts) if any(d.process_index == process for d in part)]
    return owned, len(parts)
