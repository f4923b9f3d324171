"""Where arrays lie: the device mesh (replica, fsdp, tensor) and the rules that map shapes to it.

Models and tasks know nothing of devices; the training step and evaluation ask this room for the
shardings of their arguments and results, and jit does the rest.
"""

from ldm_scaling.placement import AXES, BATCH_AXES
from ldm_scaling.sharding.explain import Placement, explain, placements
from ldm_scaling.sharding.hosts import fetch, local_rows, put_batch, put_whole
from ldm_scaling.sharding.mesh import check_batch, make_mesh, within
from ldm_scaling.sharding.rules import (
    MIN_SHARD_SIZE,
    batch_sharding,
    fsdp_spec,
    param_shardings,
    path_name,
    replicated,
)
from ldm_scaling.sharding.tensor import TENSOR_RULES, matched

__all__ = [
    "AXES",
    "BATCH_AXES",
    "MIN_SHARD_SIZE",
    "TENSOR_RULES",
    "Placement",
    "batch_sharding",
    "check_batch",
    "explain",
    "fetch",
    "fsdp_spec",
    "local_rows",
    "make_mesh",
    "matched",
    "param_shardings",
    "path_name",
    "placements",
    "put_batch",
    "put_whole",
    "replicated",
    "within",
]
