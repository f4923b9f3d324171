"""The paper's widths on TPU slices: `configs/pods.py:v5p-768` and so on, for 2048 images a step.

Each is `configs/pretrain.py` of that width with the mesh, accumulation and rematerialisation that
its compile report recommends (`ldm_scaling/assets/records/pods.jsonl`), training from latents and
embeddings that `launch/precompute.py` encoded. `topology` is the slice in JAX's words, `slice_type`
in Google Cloud's (which counts cores where a chip has two).
"""

import runpy
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from ldm_scaling.naming import check_name


class Pod(NamedTuple):
    """Where a width trains, and how it is spread there."""

    topology: str
    slice_type: str
    replica: int
    fsdp: int
    accumulate: int = 1
    remat: str = "none"
    tpu_options: str = ""


FAST_MEMORY = "xla_tpu_scoped_vmem_limit_kib=32768"
"""What an operation may fill of a core's own memory: c = 320 reaches 45.7 % of the peak, and 43.8 %
with the compiler's own limit. A transformer block of c = 320 is slower again with 49152."""

PODS = {
    "v5p-64": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16),
    "v5p-96": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16),
    "v5p-128": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16),
    "v5p-160": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16),
    "v5p-192": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16),
    "v5p-224": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16),
    "v5p-256": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16),
    "v5p-288": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16),
    "v5p-320": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16, tpu_options=FAST_MEMORY),
    "v5p-512": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16),
    "v5p-768": Pod("v5p:4x4x4", "v5p-128", replica=4, fsdp=16),
    "v5e-320": Pod("v5e:16x16", "v5litepod-256", replica=16, fsdp=16),
    "v5e-512": Pod("v5e:16x16", "v5litepod-256", replica=16, fsdp=16, accumulate=2),
    "v5e-768": Pod("v5e:16x16", "v5litepod-256", replica=1, fsdp=256, accumulate=4),
    "v6e-320": Pod("v6e:16x16", "v6e-256", replica=16, fsdp=16),
    "v6e-512": Pod("v6e:16x16", "v6e-256", replica=16, fsdp=16),
    "v6e-768": Pod("v6e:16x16", "v6e-256", replica=16, fsdp=16),
}


def get_config(name: str = "v5p-320") -> ConfigDict:
    pod = PODS[check_name("pod", name, PODS)]
    # A config file is run by path, not imported: so is its neighbour.
    pretrain = runpy.run_path(str(Path(__file__).with_name("pretrain.py")))
    config = pretrain["get_config"](name.partition("-")[2])
    config.mesh = {"replica": pod.replica, "fsdp": pod.fsdp, "tensor": 1}
    config.accumulate = pod.accumulate
    config.model.remat = pod.remat
    config.tpu_options = pod.tpu_options
    config.cache = True
    config.topology = pod.topology
    config.slice_type = pod.slice_type
    return config
