"""What the TPU compiler expects of training the family on pods: memory, utilisation, traffic.

These figures read records of kind "compile" (`launch/compile_report.py`) and need no study. All
that they show is estimated: nothing was run on a TPU.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ldm_scaling.analysis import style
from ldm_scaling.analysis.style import Drawing, NotEnoughDataError, Panel
from ldm_scaling.records import Record

GIB = 2**30
_PARTS = (("argument_bytes", "state"), ("temporary_bytes", "temporaries"), ("code_bytes", "code"))
_BARS = 6  # that a panel of memory has room for, at least
_PART_COLOURS = ("#27499c", "#3fb0c3", "#b9c3cc")


@dataclasses.dataclass(frozen=True)
class PodRow:
    """One compiled training step, as a table shows it.

    Attributes:
      width, chip, topology, chips: which model on which slice.
      mesh: sizes of replica, fsdp and tensor.
      batch_per_chip: examples of a chip in a step, over all accumulated parts.
      accumulate, remat: as trained.
      hbm: bytes of a chip, of `capacity`.
      seconds: of a step; utilisation: of the chip's peak, model FLOPs only.
      collective_bytes: received by a chip in a step; collective_seconds at the full bandwidth.
    """

    width: int
    chip: str
    topology: str
    chips: int
    mesh: tuple[int, int, int]
    batch_per_chip: int
    accumulate: int
    remat: str
    hbm: float
    capacity: float
    seconds: float
    utilisation: float
    collective_bytes: float
    collective_seconds: float


def pod_rows(records: Iterable[Record]) -> list[PodRow]:
    """The training steps among compile records, by chip, width and number of chips."""
    steps = [r for r in records if r.kind == "compile" and r.point["program"] == "train"]
    rows = [_row(record) for record in steps]
    return sorted(rows, key=lambda row: (row.chip, row.width, row.chips, row.accumulate))


def _row(record: Record) -> PodRow:
    at, costs = record.point, record.costs
    return PodRow(
        width=int(at["width"]),
        chip=str(at["topology"]).split(":")[0],
        topology=str(at["topology"]),
        chips=int(at["chips"]),
        mesh=(int(at["mesh_replica"]), int(at["mesh_fsdp"]), int(at["mesh_tensor"])),
        batch_per_chip=int(at["batch_size"]) // int(at["chips"]),
        accumulate=int(at["accumulate"]),
        remat=str(at["remat"]),
        hbm=float(costs["hbm_bytes"]),
        capacity=float(costs["hbm_capacity"]),
        seconds=float(costs["seconds"]),
        utilisation=float(record.metrics["utilisation"].value),
        collective_bytes=float(costs["collective_bytes"]),
        collective_seconds=float(costs["collective_seconds"]),
    )


def table(rows: Sequence[PodRow]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| width | slice | mesh | batch a chip | remat | HBM a chip | step | utilisation | "
        "received by a chip |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = f" in {row.accumulate} parts" if row.accumulate > 1 else ""
        lines.append(
            f"| {row.width} | {row.topology} | {' x '.join(map(str, row.mesh))} | "
            f"{row.batch_per_chip}{parts} | {row.remat} | "
            f"{row.hbm / GIB:.1f} of {row.capacity / GIB:.0f} GiB | {row.seconds:.2f} s | "
            f"{100 * row.utilisation:.0f} % | {row.collective_bytes / GIB:.2f} GiB |"
        )
    return "\n".join(lines)


def figure_pods(records: Iterable[Record]) -> Drawing:
    """Memory of a chip by part, and estimated utilisation, for each width and kind of chip.

    Raises:
      NotEnoughDataError: no training step among the records.
    """
    steps = [r for r in records if r.kind == "compile" and r.point["program"] == "train"]
    if not steps:
        raise NotEnoughDataError("no compiled training step is among the records")
    chips = sorted({str(r.point["topology"]).split(":")[0] for r in steps})
    chosen = {chip: _best_of_each_width(steps, chip) for chip in chips}

    def memory(chip: str) -> Panel:
        return Panel(lambda figure: _memory(figure, chip, chosen[chip]))

    return Drawing(
        name="pods",
        title="The family on TPU pods, as the compiler expects it",
        caption="Bars: memory of a chip by part, the line its capacity. Curves: share of the "
        "chip's peak that a training step reaches, model FLOPs only (2 × multiply-adds, three "
        "forward passes a step, nothing recomputed is counted). Each width at its most efficient "
        "record. Estimates of the TPU compiler, flash attention counted by hand; nothing was run "
        "on a TPU.",
        alt="Bars of memory by width, one panel a chip, and utilisation against width.",
        panels=(*(memory(chip) for chip in chips), Panel(lambda f: _utilisation(f, chosen))),
        columns=2 if len(chips) == 3 else 3,
    )


def figure_weak_scaling(records: Iterable[Record]) -> Drawing:
    """Seconds of a step by part against the number of chips, at constant examples a chip.

    Drawn for the width with records at the most numbers of chips.

    Raises:
      NotEnoughDataError: no width was compiled for three numbers of chips.
    """
    series = _scaling(records)
    if not series:
        raise NotEnoughDataError(
            "no width has compiled training steps at three numbers of chips with the same examples "
            "a chip"
        )
    first = series[0]
    at = first.point
    each = int(at["batch_size"]) // int(at["chips"])
    return Drawing(
        name="weak_scaling",
        title=f"Weak scaling on paper: width {at['width']}, {each} images a chip",
        caption="Seconds of a training step as the TPU compiler expects them: computing, traffic "
        "inside a slice that nothing hides, and traffic between slices at the full bandwidth of "
        "the data-center network (which may hide behind the backward pass). Estimates; nothing was "
        "run on a TPU.",
        alt="Stacked bars of seconds a step against the number of chips, and bytes against it.",
        panels=(Panel(lambda f: _seconds(f, series)), Panel(lambda f: _bytes(f, series))),
    )


def _scaling(records: Iterable[Record]) -> list[Record]:
    """Steps that differ only in their chips, by their number; of the longest such series."""
    series: dict[tuple[Any, ...], dict[tuple[int, int], Record]] = {}
    for record in records:
        if record.kind != "compile" or record.point["program"] != "train":
            continue
        at = record.point
        chip, each = str(at["topology"]).split(":")[0], int(at["batch_size"]) / int(at["chips"])
        same = (at["width"], chip, each, at["remat"], at["accumulate"], at["mesh_tensor"])
        series.setdefault(same, {})[int(at["chips"]), int(at["slices"])] = record
    longest = max(series.values(), key=len, default={})
    return [longest[chips] for chips in sorted(longest)] if len(longest) >= 3 else []


def _chips_axis(ax: Axes, series: Sequence[Record]) -> None:
    def label(record: Record) -> str:
        slices = int(record.point["slices"])
        chips = int(record.point["chips"])
        return f"{slices} x {chips // slices}" if slices > 1 else str(chips)

    ax.set_xticks(range(len(series)), [label(record) for record in series])
    ax.set_xlabel("chips (slices x chips of each)")


def _seconds(figure: Figure | SubFigure, series: Sequence[Record]) -> None:
    ax = style.axes(figure)
    inside = np.array([float(r.costs["exposed_seconds"]) for r in series])
    computing = np.array([float(r.costs["seconds"]) for r in series]) - inside
    between = np.array([float(r.costs.get("slices_seconds", 0.0)) for r in series])
    bottom = np.zeros(len(series))
    labels = ("computing", "inside a slice", "between slices")
    for height, label, colour in zip(
        (computing, inside, between), labels, _PART_COLOURS, strict=True
    ):
        ax.bar(range(len(series)), height, 0.7, bottom=bottom, color=colour, label=label)
        bottom += height
    _chips_axis(ax, series)
    ax.set_ylim(0, 1.35 * bottom.max())
    ax.set_ylabel("seconds, estimated")
    ax.set_title("A training step")
    ax.legend(loc="upper left", fontsize=8, frameon=False, ncols=3)


def _bytes(figure: Figure | SubFigure, series: Sequence[Record]) -> None:
    ax = style.axes(figure, right=0.9)
    ends = []
    for name, label, colour in (
        ("collective_bytes", "inside a slice", _PART_COLOURS[0]),
        ("slices_bytes", "between slices", _PART_COLOURS[1]),
    ):
        y = [float(r.costs.get(name, 0.0)) / GIB for r in series]
        ax.plot(range(len(series)), y, "o-", color=colour)
        ends.append((len(series) - 1.0, y[-1], label, colour))
    _chips_axis(ax, series)
    ax.set_ylim(0, None)
    ax.set_ylabel("GiB that a chip sends in a step")
    ax.set_title("Traffic of a chip")
    style.label_lines(ax, ends, where="right")


def _best_of_each_width(steps: Sequence[Record], chip: str) -> list[Record]:
    best: dict[int, Record] = {}
    for record in steps:
        if str(record.point["topology"]).split(":")[0] != chip:
            continue
        width = int(record.point["width"])
        value = record.metrics["utilisation"].value
        if width not in best or value > best[width].metrics["utilisation"].value:
            best[width] = record
    return [best[width] for width in sorted(best)]


def _memory(figure: Figure | SubFigure, chip: str, records: Sequence[Record]) -> None:
    ax = style.axes(figure)
    x = np.arange(len(records))
    bottom = np.zeros(len(records))
    for (name, label), colour in zip(_PARTS, _PART_COLOURS, strict=True):
        height = np.array([float(r.costs[name]) for r in records]) / GIB
        ax.bar(x, height, 0.7, bottom=bottom, color=colour, label=label)
        bottom += height
    capacity = float(records[0].costs["hbm_capacity"]) / GIB
    ax.axhline(capacity, color=style.INK, linewidth=1)
    ax.annotate(
        f"{capacity:.0f} GiB", (1, capacity), xycoords=("axes fraction", "data"), xytext=(-3, 2),
        textcoords="offset points", ha="right", va="bottom", fontsize=8,
    )  # fmt: skip
    ax.set_xticks(x, [str(r.point["width"]) for r in records])
    beside = max(0.6, (_BARS - len(records)) / 2)  # few bars are no wider than many
    ax.set_xlim(x[0] - beside, x[-1] + beside)
    ax.set_ylim(0, 1.12 * capacity)
    ax.set_xlabel("width c")
    ax.set_ylabel("GiB of a chip")
    ax.set_title(f"Memory on {chip}")
    ax.legend(loc="upper left", fontsize=8, frameon=False, bbox_to_anchor=(0, 0.92))


def _utilisation(figure: Figure | SubFigure, chosen: dict[str, list[Record]]) -> None:
    ax = style.axes(figure, right=0.5)
    ends = []
    for place, ((chip, records), colour) in enumerate(
        zip(chosen.items(), _line_colours(len(chosen)), strict=True)
    ):
        x = [int(r.point["width"]) for r in records]
        y = [100 * float(r.metrics["utilisation"].value) for r in records]
        # Chips are close to each other: other signs, and those of fewer widths on top.
        ax.plot(x, y, f"{'oD^sv'[place % 5]}-", color=colour, zorder=4 - len(records) / 20)
        ends.append((float(x[-1]), float(y[-1]), chip, colour))
    ax.set_xscale("log")
    apart: list[int] = []
    for width in sorted({int(r.point["width"]) for records in chosen.values() for r in records}):
        if not apart or width / apart[-1] > 1.2:
            apart.append(width)
    ax.set_xticks(apart, [str(t) for t in apart])
    ax.minorticks_off()
    ax.set_ylim(0, None)
    ax.set_xlabel("width c")
    ax.set_ylabel("% of peak, estimated")
    ax.set_title("Utilisation of a training step")
    style.label_lines(ax, ends, where="right")


def _line_colours(count: int) -> list[str]:
    return list(style.width_colours(range(count)).values())
