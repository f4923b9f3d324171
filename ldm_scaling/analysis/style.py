"""One look for all figures: colours, axes, labels on lines, and rendering to stable bytes.

A figure is a list of panels of fixed size in inches. Side by side they make the PNG and SVG file;
one by one they go into the report, where they stack on a narrow screen and keep their type size.
"""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors, patheffects, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

INK, MUTED, FAINT = "#1c2733", "#5b6875", "#d9dee3"
SAMPLER_LABELS: Mapping[str, str] = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpmpp_2m": "DPM-Solver++ 2M",
}
# Light to dark, each legible as a line on white.
_WIDTH_SCALE = colors.LinearSegmentedColormap.from_list(
    "width", ["#86cdb0", "#3fb0c3", "#2a7fb8", "#27499c", "#1a1f55"]
)
_RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs everywhere
    "font.size": 9,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.fonttype": "path",
    "svg.hashsalt": "ldm_scaling",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.color": MUTED,
    "ytick.labelsize": 8,
}


class NotEnoughDataError(ValueError):
    """The records do not hold what a figure needs; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """A drawing of fixed size: `draw` fills an empty (sub)figure of `width` x `height` inches."""

    draw: Callable[[Figure | SubFigure], None]
    width: float = 4.5
    height: float = 3.3


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure: its panels and its words.

    `caption` states metric, number of images, seeds and scale; `alt` says what is to be seen.
    """

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]
    columns: int = 3


def width_colours(widths: Sequence[int]) -> dict[int, str]:
    """The one colour scale of widths: light is small, dark is large, by rank."""
    ordered = sorted(set(widths))
    at = np.linspace(0, 1, len(ordered)) if len(ordered) > 1 else np.array([0.6])
    return {w: colors.to_hex(_WIDTH_SCALE(float(x))) for w, x in zip(ordered, at, strict=True)}


def step_words(steps: int) -> str:
    """A number of steps in words: "1 step", "10 steps"."""
    return "1 step" if steps == 1 else f"{steps} steps"


def sampler_label(name: str) -> str:
    """Name of a sampler in print."""
    return SAMPLER_LABELS.get(name, name)


def axes(figure: Figure | SubFigure, *, right: float = 0.3, bottom: float = 0.52) -> Axes:
    """One axes with margins fixed in inches, so that panels align and nothing is cut."""
    return axes_at(figure, 0.0, 1.0, right=right, bottom=bottom)


def axes_at(
    figure: Figure | SubFigure,
    low: float,
    high: float,
    *,
    left: float = 0.68,
    right: float = 0.3,
    bottom: float = 0.52,
    top: float = 0.36,
) -> Axes:
    """Axes in the vertical share [low, high] of a figure; margins in inches."""
    width, height = _size(figure)
    y0, y1 = low * height + bottom, high * height - top
    return figure.add_axes(
        (left / width, y0 / height, (width - left - right) / width, (y1 - y0) / height)
    )


def _size(figure: Figure | SubFigure) -> tuple[float, float]:
    box = figure.bbox
    dpi = figure.figure.dpi
    return float(box.width / dpi), float(box.height / dpi)


def log_axis(axis: matplotlib.axis.Axis) -> None:
    """Labels a logarithmic axis with plain numbers, few of them."""
    span = np.log10(np.divide(*axis.get_view_interval()[::-1]))
    subs = (1.0, 2.0, 5.0) if span < 2.6 else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=12))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(_tick))


def _tick(value: float, _position: object = None) -> str:
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:g}".replace("-", "−")
    exponent = int(np.floor(np.log10(abs(value)))) if value else 0
    mantissa = round(value / 10.0**exponent)
    return rf"$10^{{{exponent}}}$" if mantissa == 1 else rf"${mantissa}\cdot10^{{{exponent}}}$"


def quality_axis(ax: Axes, values: np.ndarray) -> None:
    """A logarithmic quality axis where all values are positive and span a factor of 4."""
    if values.min() > 0 and values.max() / values.min() > 4:
        ax.set_yscale("log")
        log_axis(ax.yaxis)


def halo(width: float = 2.2) -> list[patheffects.AbstractPathEffect]:
    """A white rim that keeps a label legible on lines."""
    return [patheffects.withStroke(linewidth=width, foreground="white")]


def label_lines(
    ax: Axes, items: Sequence[tuple[float, float, str, str]], *, where: str, gap: float = 10.0
) -> None:
    """Writes labels at line ends, pushed apart where they would overlap.

    Args:
      ax: axes with final limits.
      items: (x, y, text, colour) in data coordinates.
      where: "right", "above" or "below" the given points.
      gap: least distance between labels in points; along x the text's length is added.
    """
    scale = 72.0 / ax.figure.figure.dpi
    along = 1 if where == "right" else 0
    placed = sorted(
        ((ax.transData.transform((x, y)) * scale, x, y, t, c) for x, y, t, c in items),
        key=lambda item: float(item[0][along]),
    )
    wanted = [float(item[0][along]) for item in placed]
    sizes = [gap if along else gap * 0.3 + 5.2 * len(item[3]) for item in placed]
    for shifted, want, (_, x, y, text, colour) in zip(
        spread(wanted, sizes), wanted, placed, strict=True
    ):
        push = shifted - want
        offset = {"right": (8.0, push), "above": (push, 6.0), "below": (push, -6.0)}[where]
        ax.annotate(
            text,
            (x, y),
            xytext=offset,
            textcoords="offset points",
            color=_darker(colour),
            fontsize=8,
            fontweight="bold",
            ha="left" if along else "center",
            va="center" if along else ("bottom" if where == "above" else "top"),
            path_effects=halo(),
            annotation_clip=False,
            zorder=6,
        )


def _darker(colour: str) -> tuple[float, float, float]:
    """A light line's colour mixed with ink, so that its label is legible on white."""
    r, g, b = colors.to_rgb(colour)
    luminance = 0.3 * r + 0.59 * g + 0.11 * b
    share = max(0.0, luminance - 0.3)
    ink = colors.to_rgb(INK)
    return (
        (1 - share) * r + share * ink[0],
        (1 - share) * g + share * ink[1],
        (1 - share) * b + share * ink[2],
    )


def spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Positions nearest to `wanted` (ascending) whose neighbours keep their mean size apart."""
    # Pool neighbours that collide and centre each pool on its members (isotonic regression).
    offsets = np.concatenate([[0.0], np.cumsum((np.array(sizes[1:]) + sizes[:-1]) / 2)])
    pools: list[tuple[float, int]] = []
    for value in np.asarray(wanted) - offsets[: len(wanted)]:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    flat = np.repeat([p[0] for p in pools], [p[1] for p in pools])
    return [float(v) for v in flat + offsets[: len(wanted)]]


def render_panel(panel: Panel, fmt: str, dpi: int = 160) -> bytes:
    """One panel as "svg" or "png" bytes; equal input gives equal bytes."""
    return _render([panel], 1, fmt, dpi)


def render_drawing(drawing: Drawing, fmt: str, dpi: int = 160) -> bytes:
    """All panels of a figure in rows, as "svg" or "png" bytes; equal input gives equal bytes."""
    return _render(drawing.panels, drawing.columns, fmt, dpi)


def _render(panels: Sequence[Panel], columns: int, fmt: str, dpi: int) -> bytes:
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    widths = [sum(p.width for p in row) for row in rows]
    heights = [max(p.height for p in row) for row in rows]
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(max(widths), sum(heights)))
        bands = figure.subfigures(len(rows), 1, squeeze=False, hspace=0, height_ratios=heights)
        for row, band, height in zip(rows, bands[:, 0], heights, strict=True):
            rest = max(widths) - sum(p.width for p in row)
            ratios = [*(p.width for p in row), *([rest] if rest > 1e-6 else [])]
            cells = band.subfigures(1, len(ratios), squeeze=False, wspace=0, width_ratios=ratios)
            for panel, cell in zip(row, cells[0], strict=False):
                below = height - panel.height
                if below > 1e-6:  # panels of a row hang from its top
                    cell = cell.subfigures(2, 1, hspace=0, height_ratios=[panel.height, below])[0]
                panel.draw(cell)
        buffer = io.BytesIO()
        # No date and no version: equal records must give equal files.
        metadata = {"Date": None, "Creator": None} if fmt == "svg" else {"Software": None}
        figure.savefig(buffer, format=fmt, dpi=dpi if fmt == "png" else 72, metadata=metadata)
    return buffer.getvalue()
