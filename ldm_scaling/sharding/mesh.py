"""The device mesh every run lives in, also a run on one device."""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("replica", "fsdp", "tensor")
"""replica: copies of the model; fsdp: slices of weights and batch; tensor: slices of a layer."""


def make_mesh(
    replica: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over `devices` (default: all) with axes `AXES`.

    Args:
      replica, fsdp, tensor: sizes of the axes; at most one of them is -1 and takes what is left.
      devices: the devices to use; their order is chosen to suit the network between them.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"replica": replica, "fsdp": fsdp, "tensor": tensor}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    wrong = {axis: size for axis, size in sizes.items() if size < 1 and size != -1}
    if wrong or len(free) > 1:
        raise ValueError(
            f"mesh={sizes}: sizes are positive, and at most one is -1 (takes the rest)"
        )
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"mesh={sizes}: the sizes must multiply to the {len(devices)} devices; "
            "set one axis to -1 to take what is left"
        )
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
