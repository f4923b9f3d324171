"""TPU slices that a program can be compiled for, on any machine, and what their chips can do."""

import dataclasses
import os
from typing import Any

from ldm_scaling.naming import check_name


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as Google Cloud's documentation of each TPU version states it.

    Attributes:
      flops: peak FLOP/s of bfloat16 matrix products.
      hbm_bytes: capacity.
      ici_bytes: bytes a second to the other chips of the slice, sent and received counted once.
      dcn_bytes: bytes a second to other slices; None where it is not stated.
      clock: cycles a second of the core, as implied by `flops` and the matrix units: v4 and v5p
        have 2 cores of 4 units of 128x128, v5e 1 core of 4; of v6e's units, 256x256, the
        compiler's estimates count 4.
      cores: that share the work of one program.
    """

    flops: float
    hbm_bytes: int
    ici_bytes: float
    dcn_bytes: float | None
    clock: float
    cores: int


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 300e9, None, 1.05e9, 2),
    "v5e": Chip(197e12, 16 * 2**30, 200e9, 3.125e9, 1.5e9, 1),  # 6.4 Tbps for a pod of 256
    "v5p": Chip(459e12, 95 * 2**30, 600e9, 6.25e9, 1.75e9, 2),
    "v6e": Chip(918e12, 32 * 2**30, 400e9, None, 1.75e9, 1),
}


def chip_of(topology: str) -> Chip:
    """The chip of "v5p:4x4x4". Raises ValueError for an unknown one, with the nearest."""
    return CHIPS[check_name("topology", topology.split(":")[0], CHIPS)]


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
    """Devices to compile for: no TPU is needed, only the package `libtpu`.

    Args:
      topology: chip and shape of a slice, such as "v5e:4x4" or "v5p:4x4x4".
      slices: how many such slices, joined by the data-center network.

    Raises:
      ValueError: a chip or shape that does not exist.
      ImportError: libtpu is not installed.
    """
    from jax.experimental import topologies

    chip_of(topology)
    # Several processes may compile at once, and none of them looks for a TPU's metadata.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ImportError(
            "compiling for a TPU needs its compiler: pip install -c launch/constraints.txt libtpu"
        ) from None
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # whatever the plugin raises
        raise ValueError(f"topology={topology!r}, slices={slices}: {error}") from error
    return list(described.devices)
