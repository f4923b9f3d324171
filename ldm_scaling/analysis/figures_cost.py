"""Quality against sampling cost: the frontier with its certainty, and the paper's Figs. 9 and 11.

Each function takes a `Study` and returns a `Drawing`, or raises `NotEnoughDataError` with what the
records lack. Numbers of figures are those of arXiv:2404.01367.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ldm_scaling.analysis import style
from ldm_scaling.analysis.cost import AXES
from ldm_scaling.analysis.frontier import Frontier, trace
from ldm_scaling.analysis.guidance_optimum import best_by_steps, fair_points
from ldm_scaling.analysis.ranking import MetricInfo
from ldm_scaling.analysis.study import Point, Study
from ldm_scaling.analysis.style import Drawing, NotEnoughDataError, Panel

_Z95 = 1.959963984540054


def conditions(study: Study) -> str:
    """What every caption says: metric, number of images, seeds, scale."""
    seeds = study.seeds
    named = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return (
        f"{study.info.label} ({'lower' if study.info.lower_is_better else 'higher'} is better), "
        f"N = {study.points[0].num_samples} images a point, {named}; "
        f"{study.family or 'unnamed'} family, widths {', '.join(map(str, study.widths))}."
    )


def default_sampler(study: Study) -> str:
    """DDIM, the paper's default, or the first sampler there is."""
    return "ddim" if "ddim" in study.samplers else study.samplers[0]


def _interval(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    value = np.array([p.value for p in points])
    half = _Z95 * np.nan_to_num(np.array([p.sigma for p in points]))
    return value, value - half, value + half


def curve(
    ax: Axes,
    x: np.ndarray,
    points: Sequence[Point],
    colour: str,
    line: str = "-",
    marker: str = "o",
) -> None:
    """The points' values as a line, their 95 % intervals as a band."""
    value, low, high = _interval(points)
    if value.min() > 0:
        low = np.maximum(low, value.min() * 0.3)  # a logarithmic axis has no place below zero
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    ax.plot(x, value, line, color=colour, marker=marker, markersize=3.2, markeredgewidth=0)


def start_labels(
    ax: Axes,
    info: MetricInfo,
    starts: Mapping[int, tuple[float, float]],
    colours: Mapping[int, str],
) -> None:
    """Width labels at the left ends of curves, on the worse side of them."""
    items = [(x, y, str(w), colours[w]) for w, (x, y) in starts.items()]
    style.label_lines(ax, items, where="above" if info.lower_is_better else "below")


def headroom(ax: Axes, info: MetricInfo, share: float = 0.09) -> None:
    """Room for start labels on the worse side of the quality axis."""
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log":
        factor = (high / low) ** share
        ax.set_ylim(*((low, high * factor) if info.lower_is_better else (low / factor, high)))
    else:
        step = (high - low) * share
        ax.set_ylim(*((low, high + step) if info.lower_is_better else (low - step, high)))


def quality_label(study: Study) -> str:
    """Metric and the direction of better, for an axis."""
    return f"{study.info.label} {study.info.arrow}"


def figure_frontier(study: Study) -> Drawing:
    """Best quality at each cost, and how surely each width is the one that gives it."""
    frontier = trace(study)
    colours = style.width_colours(study.widths)
    low, high = float(frontier.costs[0]), float(frontier.costs[-1])
    pad = max((high / low) ** 0.04, 1.05)
    limits = (low / pad, high * pad)

    def by_sign(value: float) -> float:
        return study.info.sign * value

    def draw(figure: Figure | SubFigure) -> None:
        top = style.axes_at(figure, 0.36, 1.0, bottom=0.1)
        starts = {}
        for width in study.widths:
            mine = [p for p in study.points if p.width == width]
            x = [p.costs[study.axis] for p in mine]
            y = [p.value for p in mine]
            top.scatter(x, y, s=8, color=colours[width], alpha=0.5, linewidth=0)
            first = min(x)
            worst = max((v for v, c in zip(y, x, strict=True) if c == first), key=by_sign)
            starts[width] = (first, worst)
        best = study.info.sign * frontier.score.min(axis=0)
        edges = np.append(frontier.costs, limits[1])
        top.step(edges, np.append(best, best[-1]), where="post", color=style.INK, linewidth=1.5)
        top.set_xscale("log")
        top.set_xlim(limits)
        style.quality_axis(top, np.array([p.value for p in study.points]))
        headroom(top, study.info, 0.05)
        start_labels(top, study.info, starts, colours)
        style.log_axis(top.xaxis)
        top.tick_params(labelbottom=False)
        top.set_ylabel(quality_label(study))
        top.set_title("Every setting, and the best for the money")
        below = style.axes_at(figure, 0.0, 0.36, top=0.3)
        below.set_xscale("log")
        below.set_xlim(limits)
        _probability_areas(below, frontier, [colours[w] for w in study.widths], limits[1])
        style.log_axis(below.xaxis)
        below.set_xlabel(AXES[study.axis].label)
        below.set_title("Probability that a width is best")

    return Drawing(
        name="frontier",
        title="The frontier",
        caption=f"Each dot is one setting (width, sampler, steps, guidance), each colour a width; "
        f"the black line is the best that a cost can buy. Below, the probability that each width "
        f"provides it. {conditions(study)}",
        alt="Scatter of quality against sampling cost with the frontier of best settings, above "
        "areas that show which width is most likely the best at each cost.",
        panels=(Panel(draw, 5.2, 4.9),),
    )


def _probability_areas(ax: Axes, frontier: Frontier, colours: Sequence[str], end: float) -> None:
    """Stacked probabilities by cost, labelled where an area is tall."""
    costs = frontier.costs
    edges = np.append(costs, end)
    base = np.zeros(len(edges))
    for g, colour in enumerate(colours):
        p = np.append(frontier.probability[g], frontier.probability[g, -1])
        ax.fill_between(edges, base, base + p, step="post", color=colour, linewidth=0)
        weight = np.where(p[:-1] > 0.5, np.diff(np.log(edges)), 0.0)
        if weight.sum() > 0.06 * math.log(edges[-1] / edges[0]):
            x = math.exp(float(np.average(np.log(edges[:-1]) + weight / 2, weights=weight)))
            k = int(np.searchsorted(edges, x, side="right")) - 1
            dark = g >= len(colours) / 2
            ax.text(
                x,
                float(base[k] + p[k] / 2),
                str(frontier.groups[g]),
                ha="center",
                va="center",
                fontsize=8.5,
                fontweight="bold",
                color="white" if dark else style.INK,
            )
        base = base + p
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.5, 1])
    ax.grid(False)


def figure_9(study: Study) -> Drawing:
    """Cost against steps, and quality against cost at each setting's best guidance (Fig. 9)."""
    sampler = default_sampler(study)
    colours = style.width_colours(study.widths)
    curves = {w: best_by_steps(study, w, sampler) for w in study.widths}
    curves = {w: points for w, points in curves.items() if points}
    if max(len(points) for points in curves.values()) < 2:
        raise NotEnoughDataError("only one number of steps was sampled")

    def left(figure: Figure | SubFigure) -> None:
        ax = style.axes(figure, right=0.5)
        ends = []
        for w, points in curves.items():
            x, y = [p.steps for p in points], [p.costs[study.axis] for p in points]
            ax.plot(x, y, marker="o", markersize=3, color=colours[w])
            ends.append((float(x[-1]), float(y[-1]), str(w), colours[w]))
        ax.set_xscale("log")
        ax.set_yscale("log")
        style.log_axis(ax.xaxis)
        style.log_axis(ax.yaxis)
        ax.set_xlabel("sampling steps")
        ax.set_ylabel("sampling cost")
        ax.set_title("What steps cost")
        style.label_lines(ax, ends, where="right")

    def right(figure: Figure | SubFigure) -> None:
        ax = style.axes(figure)
        _cost_curves(ax, study, curves)
        ax.set_title("What a cost buys")

    return Drawing(
        name="figure_9",
        title="Quality at equal sampling cost",
        caption=f"{style.sampler_label(sampler)}, each width and step count at its best guidance "
        f"rate; numbers on the lines are widths, bands 95 % intervals. {conditions(study)} "
        "After the paper's Fig. 9.",
        alt="Left: sampling cost rises in proportion to steps, one line a width. Right: quality "
        "against sampling cost, one line a width with its interval.",
        panels=(Panel(left), Panel(right)),
    )


def _cost_curves(ax: Axes, study: Study, curves: dict[int, list[Point]], line: str = "-") -> None:
    colours = style.width_colours(study.widths)
    starts = {}
    for w, points in curves.items():
        x = np.array([p.costs[study.axis] for p in points])
        curve(ax, x, points, colours[w], line)
        starts[w] = (float(x[0]), points[0].value)
    ax.set_xscale("log")
    style.quality_axis(ax, np.array([p.value for p in study.points]))
    style.log_axis(ax.xaxis)
    ax.set_xlabel(AXES[study.axis].label)
    ax.set_ylabel(quality_label(study))
    headroom(ax, study.info)
    start_labels(ax, study.info, starts, colours)


def figure_11(study: Study) -> Drawing:
    """Other samplers against the default one, at equal cost and up to 50 steps (Fig. 11)."""
    base = default_sampler(study)
    others = [s for s in study.samplers if s != base]
    if not others:
        raise NotEnoughDataError(f"only one sampler ({style.sampler_label(base)}) was used")
    points, which = fair_points(study)
    few = [p for p in points if p.steps <= 50]
    if not few:
        raise NotEnoughDataError("no sampler was given 50 steps or fewer")

    return Drawing(
        name="figure_11",
        title="Samplers at equal cost",
        caption="Each width and step count (at most 50) at its best guidance rate, of those that "
        f"all samplers were given ({which or 'none in common, so all are shown'}); bands are 95 % "
        "intervals of the solid lines. "
        f"{conditions(study)} After the paper's Fig. 11.",
        alt="Quality against sampling cost for each sampler compared with the default sampler, "
        "one line a width, and the best of all widths for each sampler.",
        panels=(
            *(Panel(_sampler_curves(study, few, s, base)) for s in others),
            Panel(lambda figure: _sampler_frontiers(figure, study, few)),
        ),
    )


def _sampler_curves(study: Study, points: Sequence[Point], other: str, base: str):
    def draw(figure: Figure | SubFigure) -> None:
        ax = style.axes(figure)
        colours = style.width_colours(study.widths)
        solid = {w: best_by_steps(study, w, other, points) for w in study.widths}
        dashed = {w: best_by_steps(study, w, base, points) for w in study.widths}
        for w, curve_points in dashed.items():
            x = [p.costs[study.axis] for p in curve_points]
            ax.plot(x, [p.value for p in curve_points], "--", color=colours[w], linewidth=1.1)
        _cost_curves(ax, study, {w: c for w, c in solid.items() if c})
        ax.set_title(f"{style.sampler_label(other)} (solid), {style.sampler_label(base)} (dashed)")

    return draw


def _sampler_frontiers(figure: Figure | SubFigure, study: Study, points: Sequence[Point]) -> None:
    ax = style.axes(figure)
    frontier = trace(study, by="sampler", points=points)
    # Not the colours of widths: samplers are another thing.
    shades = dict(zip(frontier.groups, ("#8d99a5", "#c2571a", style.INK), strict=False))
    for g, sampler in enumerate(frontier.groups):
        ok = np.isfinite(frontier.score[g])
        ax.step(
            frontier.costs[ok],
            study.info.sign * frontier.score[g, ok],
            where="post",
            color=shades.get(sampler, "#6a4fa3"),
            label=style.sampler_label(str(sampler)),
        )
    ax.set_xscale("log")
    style.quality_axis(ax, np.array([p.value for p in study.points]))
    style.log_axis(ax.xaxis)
    ax.set_xlabel(AXES[study.axis].label)
    ax.set_ylabel(quality_label(study))
    ax.set_title("Best width for each sampler")
    ax.legend(
        loc="upper right" if study.info.lower_is_better else "lower right",
        frameon=False,
        fontsize=8,
    )
