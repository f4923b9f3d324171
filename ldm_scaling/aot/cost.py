"""Memory, traffic and time of a program for a TPU slice: estimated; nothing is run."""

import dataclasses
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax

from ldm_scaling.aot.reading import Kernel, Reading, read
from ldm_scaling.aot.topology import Chip, chip_of

SOURCE = "the TPU compiler's estimate; nothing was run on a TPU"

LANES = 128
"""Channels of a matrix unit: heads of fewer channels leave the rest of it idle."""

FLASH_EFFICIENCY = 0.76
"""Share of the matrix units' time that the flash kernels use, at heads padded to `LANES`.

Counted by hand for v5p from the final schedules, for heads of 40 channels and 4096 tokens: the
forward kernel takes 5,400 instruction bundles a block of 1024 x 1024 scores, where its two padded
products fill 4,096. The backward kernel takes 9,900, less than the 10,240 that five padded products
would fill, so this one share errs towards slow: over both kernels by 23 %. The compiler itself
gives kernels no cost."""

_PRODUCTS = {  # of flash kernels, for each score
    "splash_mha_fwd_residuals": 2,
    "splash_mha_fwd_no_residuals": 2,
    "splash_mha_dkv_no_residuals": 5,
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a program needs, for each chip and run.

    Attributes:
      utilisation: model FLOPs over what the chip could do in `costs["seconds"]`.
      costs: for a record. Bytes: argument, temporary, code, hbm (their sum, a donated argument
        counted once), hbm_capacity. The compiler's own analysis, loops counted once:
        compiler_flops, compiler_bytes, compiler_seconds. Ours, loops unrolled: model_flops (of
        the trace, nothing recomputed), cycles, kernel_flops and kernel_seconds (counted by hand),
        seconds (cycles and kernels one after another, collectives hidden behind them),
        collective_bytes, collective_seconds (at the chip's full bandwidth), and <kind>_count,
        <kind>_bytes for each kind of collective.
      provenance: versions, and seconds of compiling.
    """

    utilisation: float
    costs: Mapping[str, float]
    provenance: Mapping[str, Any]


def estimate(lowered: Any, topology: str, model_flops: float) -> Estimate:
    """Compiles a lowered program and says what the compiler thinks of it.

    Args:
      lowered: what `jax.jit(...).lower` returns, for devices of `topology`.
      topology: "v5p:4x4x4".
      model_flops: of one chip in one run.

    Raises:
      MemoryError: the program does not fit into the chips' memory; says how much it needs.
    """
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"{topology}: does not fit: {str(error).splitlines()[0]}") from error
    seconds = time.monotonic() - start
    chip = chip_of(topology)
    costs = _costs(compiled, read(compiled.as_text()), chip, model_flops)
    return Estimate(
        utilisation=model_flops / costs["seconds"] / chip.flops,
        costs=costs,
        provenance={
            "jax": jax.__version__,
            "libtpu": version("libtpu"),
            "seconds": {"compile": round(seconds, 1)},
        },
    )


def kernel_flops(kernel: Kernel) -> float:
    """FLOPs of one run of a flash kernel, its heads padded to `LANES`; 0 for any other call.

    The forward kernel multiplies twice for each score, the backward one five times.
    """
    if kernel.name not in _PRODUCTS:
        return 0.0
    queries_of, keys_of = [shape for shape in kernel.operands if len(shape) == 4][:2]
    batch, heads, size, queries = queries_of  # tokens along the lanes
    padded = -(-size // LANES) * LANES
    return _PRODUCTS[kernel.name] * 2.0 * batch * heads * queries * keys_of[3] * padded


def _costs(compiled: Any, reading: Reading, chip: Chip, model_flops: float) -> dict[str, float]:
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    hbm = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes  # outputs in the place of donated arguments
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    cycles = sum(reading.cycles.values())
    kernels = sum(kernel_flops(kernel) * kernel.count for kernel in reading.kernels)
    kernel_seconds = kernels / chip.flops / FLASH_EFFICIENCY
    moved = sum(each.bytes for each in reading.collectives.values())
    costs = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "hbm_bytes": hbm,
        "hbm_capacity": chip.hbm_bytes,
        "model_flops": model_flops,
        "compiler_flops": analysis.get("flops", 0.0),
        "compiler_bytes": analysis.get("bytes accessed", 0.0),
        "compiler_seconds": analysis.get("optimal_seconds", 0.0),
        "cycles": cycles,
        "kernel_flops": kernels,
        "kernel_seconds": kernel_seconds,
        # A core's operations run one after another: their cycles add up.
        "seconds": cycles / chip.clock + kernel_seconds,
        "collective_bytes": moved,
        "collective_seconds": moved / chip.ici_bytes,
        "unknown_loops": reading.unknown_loops,
        **{f"{kind}_count": each.count for kind, each in reading.collectives.items()},
        **{f"{kind}_bytes": each.bytes for kind, each in reading.collectives.items()},
    }
    return {name: float(value) for name, value in costs.items()}
