"""Ahead of time: what a program needs on a TPU slice, asked of the TPU's compiler without one.

`topology` names slices and what their chips can do, `reading` reads a compiled module, `cost`
puts memory, traffic and estimated time together. What is lowered is a matter of `train` (the loop's
own step) and `evaluation` (sampling); here no program is known.
"""

from ldm_scaling.aot.cost import Estimate, estimate, kernel_seconds
from ldm_scaling.aot.reading import COLLECTIVES, Collective, Kernel, Reading, read
from ldm_scaling.aot.record import record_of
from ldm_scaling.aot.topology import CHIPS, Chip, chip_of, topology_devices

__all__ = [
    "CHIPS",
    "COLLECTIVES",
    "Chip",
    "Collective",
    "Estimate",
    "Kernel",
    "Reading",
    "chip_of",
    "estimate",
    "kernel_seconds",
    "read",
    "record_of",
    "topology_devices",
]
