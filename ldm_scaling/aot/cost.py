"""Memory, traffic and time of a program for a TPU slice: estimated; nothing is run."""

import dataclasses
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax
from absl import logging

from ldm_scaling.aot.reading import Kernel, Reading, read
from ldm_scaling.aot.topology import CHIPS, chip_of

SOURCE = "the TPU compiler's estimate; nothing was run on a TPU"

_V5P = {
    "splash_mha_fwd": {64: 4_500, 128: 4_500, 256: 10_400},
    "splash_mha_dkv": {64: 10_700, 128: 11_900, 256: 22_400},
}
FLASH_BUNDLES = {
    "v4": _V5P,  # not counted: the same matrix units
    "v5e": _V5P,  # within 3 % for heads of 40 and 192
    "v5p": _V5P,
    "v6e": {
        "splash_mha_fwd": {64: 3_100, 128: 3_100, 256: 4_600},
        "splash_mha_dkv": {64: 7_500, 128: 6_500, 256: 7_800},
    },
}
"""Instruction bundles (one a cycle) that one core takes for 1024 x 1024 scores of one head of up to
so many channels. The compiler gives kernels no cost; these are counted by hand in its final
schedules of the flash kernels, forward and backward: heads of 40, 64 and 96 at 4096 tokens, of 192
at 1024. At 1024 tokens smaller heads take up to a third more in the forward kernel. The matrix
units of v5p would need 4,096 and 10,240 for heads of up to 128."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a program needs, for each chip and run.

    Attributes:
      utilisation: model FLOPs over what the chip could do in `costs["seconds"]`.
      costs: for a record. Bytes: argument, temporary, code, hbm (their sum, a donated argument
        counted once), hbm_capacity; the compiler may accept a sum above it, since it refuses by
        what is alive at one time. The compiler's own analysis, loops counted once:
        compiler_flops, compiler_bytes, compiler_seconds. Ours, loops unrolled: model_flops (of
        the trace, nothing recomputed), cycles, kernel_seconds (counted by hand). Traffic inside a
        slice: collective_bytes, what a chip sends; collective_seconds, at its full bandwidth;
        exposed_seconds, those of them in which nothing is computed; and <kind>_count, <kind>_bytes
        for each kind of collective. Traffic between slices: slices_bytes, slices_seconds (where
        the bandwidth is known). seconds: cycles, kernels and exposed collectives one
        after another; traffic between slices is taken to be hidden behind them.
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
        if "RESOURCE_EXHAUSTED" not in str(error) or "Vmem" in str(error):
            raise  # a kernel too big for its core is no matter of the model's size
        raise MemoryError(f"{topology}: does not fit: {str(error).splitlines()[0]}") from error
    seconds = time.monotonic() - start
    costs = _costs(compiled, read(compiled.as_text()), topology, model_flops)
    if costs["unknown_loops"]:
        logging.warning(
            "%s: %d loops do not tell how often they turn and count once, so the estimate is too "
            "low; a mesh with replica > 1 may have none",
            topology, costs["unknown_loops"],
        )  # fmt: skip
    if costs["hbm_bytes"] > costs["hbm_capacity"]:
        logging.warning(
            "%s: needs %.1f GiB and has %.0f, though the compiler accepts it; with more parts "
            "(accumulate), a larger mesh axis fsdp or remat it may fit",
            topology, costs["hbm_bytes"] / 2**30, costs["hbm_capacity"] / 2**30,
        )  # fmt: skip
    return Estimate(
        utilisation=model_flops / costs["seconds"] / chip_of(topology).flops,
        costs=costs,
        provenance={
            "jax": jax.__version__,
            "libtpu": version("libtpu"),
            "seconds": {"compile": round(seconds, 1)},
        },
    )


def kernel_seconds(kernel: Kernel, chip: str) -> float:
    """Seconds of all runs of a flash kernel on a chip by `FLASH_BUNDLES`; 0 for any other call."""
    bundles = FLASH_BUNDLES[chip].get(kernel.name.partition("_residuals")[0].removesuffix("_no"))
    if bundles is None:
        return 0.0
    queries_of, keys_of = [shape for shape in kernel.operands if len(shape) == 4][:2]
    batch, heads, size, queries = queries_of  # tokens along the lanes
    counted = next((most for most in bundles if size <= most), max(bundles))
    each = bundles[counted] * max(1.0, size / counted)
    blocks = batch * heads * (queries / 1024) * (keys_of[3] / 1024)
    return kernel.count * blocks * each / (CHIPS[chip].clock * CHIPS[chip].cores)


def _costs(compiled: Any, reading: Reading, topology: str, model_flops: float) -> dict[str, float]:
    chip = chip_of(topology)
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    hbm = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes  # outputs in the place of donated arguments
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    cycles = sum(reading.cycles.values())
    kernels = sum(kernel_seconds(kernel, topology.split(":")[0]) for kernel in reading.kernels)
    inside, hidden, between = _traffic(reading)
    exposed_seconds = (inside - hidden) / chip.ici_bytes
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
        "kernel_seconds": kernels,
        # A core's operations run one after another: their cycles add up.
        "seconds": cycles / chip.clock + kernels + exposed_seconds,
        "collective_bytes": inside,
        "collective_seconds": inside / chip.ici_bytes,
        "exposed_seconds": exposed_seconds,
        "slices_bytes": between,
        **({"slices_seconds": between / chip.dcn_bytes} if chip.dcn_bytes else {}),
        "unknown_loops": reading.unknown_loops,
        **{f"{kind}_count": each.count for kind, each in reading.collectives.items()},
        **{f"{kind}_bytes": each.bytes for kind, each in reading.collectives.items()},
    }
    return {name: float(value) for name, value in costs.items()}


def _traffic(reading: Reading) -> tuple[int, int, int]:
    """Bytes a chip sends inside its slice, those of them behind computation, and to other slices.

    A gather or scatter over n chips sends (n - 1) / n of the whole array, here counted as all of
    it; an all-reduce is one of each.
    """
    inside = hidden = between = 0
    for kind, each in reading.collectives.items():
        if kind == "send-to-slices":
            between += each.bytes
            continue
        passes = 2 if kind == "all-reduce" else 1
        inside += passes * each.bytes
        hidden += passes * each.hidden
    return inside, hidden, between
