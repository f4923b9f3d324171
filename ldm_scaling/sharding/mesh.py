"""The device mesh every run lives in, also a run on one device."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from ldm_scaling.placement import AXES, BATCH_AXES


def make_mesh(
    replica: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over `devices` (default: all) with axes `AXES`.

    Where the devices are several TPU slices, joined by the data-center network (DCN), each slice
    holds whole copies of the model: only the sum of gradients over `replica` crosses the DCN.

    Args:
      replica, fsdp, tensor: sizes of the axes; at most one of them is -1 and takes what is left.
      devices: the devices to use, real ones or those of a topology to compile for; their order is
        chosen to suit the network between them.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices, the slices do not divide
        `replica`, or the sides of a slice cannot be grouped into axes of these sizes.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _filled({"replica": replica, "fsdp": fsdp, "tensor": tensor}, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes["replica"] % slices:
        raise ValueError(
            f"mesh={sizes}: the devices are {slices} slices, and replica must be a multiple of "
            f"{slices}, so that only gradients cross the network between slices"
        )
    try:
        if slices > 1:
            shape = tuple({**sizes, "replica": sizes["replica"] // slices}.values())
            grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1, 1), devices)
        else:
            grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices)
    except NotImplementedError as error:
        raise ValueError(
            f"mesh={sizes}: every axis must be a product of some sides of the slice, such as 4, 16 "
            f"or 64 on 4x4x4: {error}"
        ) from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> int:
    """The parts that a mesh cuts a batch into, all of the same size.

    Raises:
      ValueError: there are no such parts.
    """
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * accumulate
    if batch_size < 1 or batch_size % parts:
        axes = " * ".join(BATCH_AXES) + (" * accumulate" if accumulate > 1 else "")
        raise ValueError(f"batch_size={batch_size}: must be a multiple of {axes} = {parts}")
    return parts


def within(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced with the mesh in use, as `ldm_scaling.placement` needs it."""

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def _filled(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """The sizes with -1 replaced by what is left of `count` devices."""
    sizes = dict(sizes)
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    wrong = {axis: size for axis, size in sizes.items() if size < 1 and size != -1}
    if wrong or len(free) > 1:
        raise ValueError(
            f"mesh={sizes}: sizes are positive, and at most one is -1 (takes the rest)"
        )
    if free and count % fixed == 0:
        sizes[free[0]] = count // fixed
    if math.prod(sizes.values()) != count:
        raise ValueError(
            f"mesh={sizes}: the sizes must multiply to the {count} devices; "
            "set one axis to -1 to take what is left"
        )
    return sizes
