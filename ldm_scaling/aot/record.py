"""One compile record: the same shape for training, evaluating and sampling."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_scaling.aot.cost import SOURCE, estimate
from ldm_scaling.records import Metric, Record


def record_of(
    lowered: Any,
    config: ConfigDict,
    mesh: Mesh,
    *,
    topology: str,
    slices: int,
    model_flops: float,
    point: Mapping[str, Any],
) -> Record:
    """Compiles a lowered program and records what it needs.

    Args:
      lowered: what `jax.jit(...).lower` returns, for devices of `mesh`.
      config: of the run.
      model_flops: of all chips in one run of the program.
      point: what the program is; where it was compiled for is added.

    Raises:
      MemoryError: the program does not fit into the chips' memory.
    """
    chips = math.prod(mesh.shape.values())
    found = estimate(lowered, topology, model_flops / chips)
    level = jax.config.values["jax_optimization_level"]
    return Record(
        kind="compile",
        point={
            **point,
            "topology": topology,
            "slices": slices,
            "chips": chips,
            **{f"mesh_{axis}": size for axis, size in mesh.shape.items()},
            "attention": config.model.attention,
            "dtype": config.model.dtype,
            **({"optimization_level": level} if level != "UNKNOWN" else {}),  # the default
        },
        seed=config.seed,
        num_samples=0,
        metrics={"utilisation": Metric(found.utilisation)},
        costs=found.costs,
        protocol={"source": SOURCE},
        provenance=found.provenance,
    )
