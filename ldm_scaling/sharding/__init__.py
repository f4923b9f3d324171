"""Where arrays lie: the device mesh (replica, fsdp, tensor) and the rules that map shapes to it.

Models and tasks know nothing of devices; the training step and evaluation ask this room for the
shardings of their arguments and results, and jit does the rest.
"""

from ldm_scaling.sharding.hosts import fetch, local_rows, put_batch, put_whole
from ldm_scaling.sharding.mesh import AXES, make_mesh
from ldm_scaling.sharding.rules import (
    BATCH_AXES,
    MIN_SHARD_SIZE,
    batch_sharding,
    fsdp_spec,
    param_shardings,
    replicated,
)

__all__ = [
    "AXES",
    "BATCH_AXES",
    "MIN_SHARD_SIZE",
    "batch_sharding",
    "fetch",
    "fsdp_spec",
    "local_rows",
    "make_mesh",
    "param_shardings",
    "put_batch",
    "put_whole",
    "replicated",
]
