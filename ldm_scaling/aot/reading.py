"""What a compiled program says of itself: collectives and cycles, read from its final HLO text.

XLA's own cost analysis counts a loop's body once and does not name collectives at all. The text of
the scheduled module has both: every collective with the shape it moves, every loop with its trip
count, and (on TPUs) the cycles that the compiler expects an operation to take.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send-to-slices",
)
"""Kinds of collectives: XLA's operations, and what a chip sends to other slices of a pod."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-<>]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.\-<>]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-<>]+)")
_CONSTANT = re.compile(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OPERANDS = re.compile(r"operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one run of the program.

    Attributes:
      count: how many run.
      bytes: of their results on one device (of a reduce-scatter, its operands), summed over all
        that run.
      hidden: those of the bytes that move while the device computes.
    """

    count: int = 0
    bytes: int = 0
    hidden: int = 0


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A custom call, of which the compiler knows no cost.

    Attributes:
      name: of the instruction, without its number: Pallas kernels give theirs.
      operands: shapes of its operands.
      count: how often it runs.
    """

    name: str
    operands: tuple[tuple[int, ...], ...]
    count: int


@dataclasses.dataclass(frozen=True)
class Reading:
    """What `read` finds: for one device and one run of the program, loops unrolled.

    Attributes:
      collectives: kind -> count and bytes.
      cycles: operation, such as "fusion" or "copy" -> the compiler's estimate for all of that
        kind. Collectives, transfers and kernels are not among them.
      kernels: custom calls.
      unknown_loops: loops whose trip count is not known; their bodies are counted once.
    """

    collectives: Mapping[str, Collective]
    cycles: Mapping[str, int]
    kernels: tuple[Kernel, ...]
    unknown_loops: int


def read(text: str) -> Reading:
    """Reads the text of a compiled module, as `jax.stages.Compiled.as_text` gives it.

    Raises:
      ValueError: it has no entry computation.
    """
    computations, entry = _split(text)
    collectives: dict[str, Collective] = defaultdict(Collective)
    fused_into: dict[str, list[tuple[str, int, int]]] = defaultdict(list)  # by channel
    cycles: dict[str, int] = defaultdict(int)
    kernels: dict[tuple[str, tuple[tuple[int, ...], ...]], int] = defaultdict(int)
    unknown = 0

    def add(kind: str, times: int, moved: int, hidden: bool) -> None:
        so_far, moved = collectives[kind], times * moved
        collectives[kind] = Collective(
            so_far.count + times, so_far.bytes + moved, so_far.hidden + hidden * moved
        )

    for computation, (times, fused) in _runs(computations, entry).items():
        for name, shape, operation, line in _instructions(computations[computation]):
            kind = operation.removesuffix("-start")
            if operation == "send" and "megascale" in line:
                add("send-to-slices", times, _bytes_moved(shape, asynchronous=False), hidden=True)
            elif kind in COLLECTIVES:
                moved = _bytes_moved(shape, asynchronous=operation != kind)
                if fused and (channel := _CHANNEL.search(line)):
                    scatters = computation.startswith("all-reduce-scatter")
                    kind = "reduce-scatter" if scatters else kind
                    fused_into[channel[1]].append((kind, times, moved))
                else:
                    add(kind, times, moved, hidden=operation != kind)
            elif fused:
                continue
            elif operation == "custom-call" and "AllocateBuffer" not in line:
                kernels[re.sub(r"\.\d+$", "", name), _operand_shapes(line)] += times
            elif estimate := _CYCLES.search(line):
                cycles[operation] += times * int(estimate[1])
            unknown += operation == "while" and _trips(computations, line) is None
    for parts in fused_into.values():
        # One in several fused operations begins in the first, ends in the last, and moves its bytes
        # while those between them compute.
        add(*parts[0], hidden=len(parts) > 1)
    return Reading(
        collectives=dict(sorted(collectives.items())),
        cycles=dict(sorted(cycles.items(), key=lambda item: -item[1])),
        kernels=tuple(Kernel(*key, count) for key, count in sorted(kernels.items())),
        unknown_loops=unknown,
    )


def _split(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of every computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", None
    for line in text.splitlines():
        if lines is None:
            if header := _COMPUTATION.match(line):
                lines = computations[header[2]] = []
                entry = header[2] if header[1] else entry
        elif line == "}":  # a kernel's metadata may hold lines that only begin with a brace
            lines = None
        else:
            lines.append(line)
    if not entry:
        raise ValueError("no entry computation: this is not the text of a compiled module")
    return computations, entry


def _instructions(lines: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """(name, shape, operation, line) of every instruction."""
    for line in lines:
        if found := _INSTRUCTION.match(line):
            yield found[1], found[2], found[3], line


def _runs(computations: dict[str, list[str]], entry: str) -> dict[str, tuple[int, bool]]:
    """Computation -> how often it runs, and whether only as a part of a fused operation.

    The cycles of a fused operation stand at its caller; but collectives may be fused, too. Of a
    conditional's branches each is counted as if it were taken.
    """
    times: dict[str, int] = defaultdict(int)
    alone: set[str] = set()

    def visit(name: str, count: int, fused: bool) -> None:
        times[name] += count
        if not fused:
            alone.add(name)
        for _, _, operation, line in _instructions(computations[name]):
            trips = _trips(computations, line) if operation == "while" else None
            branches = _BRANCHES.search(line)
            called = _CALLED.findall(line) + (branches[1].split(",") if branches else [])
            inside = fused or operation not in ("while", "conditional", "call")
            for each in (c.strip().lstrip("%") for c in called):
                if each in computations:
                    visit(each, count * (1 if trips is None else trips), inside)

    visit(entry, 1, False)
    return {name: (count, name not in alone) for name, count in times.items()}


def _trips(computations: Mapping[str, list[str]], line: str) -> int | None:
    """How often a loop of JAX runs: it counts from 0 by 1, while below a constant. None: unknown.

    (The compiler knows it, too, but a TPU's final module does not say so.)
    """
    condition = _CONDITION.search(line)
    body = "\n".join(computations.get(condition[1], ())) if condition else ""
    limit = _BELOW.search(body)
    constants = {found[1]: int(found[2]) for found in _CONSTANT.finditer(body)}
    return constants.get(limit[1]) if limit else None


def _bytes_moved(shape: str, asynchronous: bool) -> int:
    """Bytes of a collective's result; an asynchronous one lists operands, results and counters."""
    arrays = [array for array in _SHAPE.findall(shape) if array != ("u32", "")]
    if asynchronous:
        arrays = arrays[len(arrays) // 2 :]
    return sum(_itemsize(dtype) * int(np.prod(_dims(dims))) for dtype, dims in arrays)


def _operand_shapes(line: str) -> tuple[tuple[int, ...], ...]:
    operands = _OPERANDS.search(line)
    return tuple(_dims(dims) for _, dims in _SHAPE.findall(operands[1])) if operands else ()


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _itemsize(hlo_dtype: str) -> int:
    """Bytes of an element: the first number in "bf16" or "f8e4m3fn" is of bits."""
    bits = re.search(r"\d+", hlo_dtype)
    return max(1, int(bits[0]) // 8) if bits else 1  # pred
