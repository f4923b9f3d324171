"""Quality against training compute, the best guidance rate, and Table 1: Figs. 3 and 8.

Each function takes a `Study` and returns a `Drawing`, or raises `NotEnoughDataError` with what the
records lack. Numbers of figures are those of arXiv:2404.01367.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ldm_scaling.analysis import style
from ldm_scaling.analysis.cost import FamilyRow, family_table
from ldm_scaling.analysis.figures_cost import (
    conditions,
    curve,
    default_sampler,
    headroom,
    quality_label,
    start_labels,
)
from ldm_scaling.analysis.guidance_optimum import best_by_rate, best_guidance
from ldm_scaling.analysis.ranking import METRICS, MetricInfo
from ldm_scaling.analysis.scaling_fit import (
    PowerLaw,
    fit_power_law,
    training_compute,
    training_series,
    validation_points,
)
from ldm_scaling.analysis.study import Point, Study
from ldm_scaling.analysis.style import Drawing, NotEnoughDataError, Panel

ALIGNMENT = "alignment_lite0_minilm"


def trained_law(study: Study) -> tuple[list[Point], PowerLaw]:
    """Points of one sampling setting along training, and the power law through them.

    Raises:
      NotEnoughDataError: no width was evaluated at more than one length of training, or the
        records do not know the training compute.
    """
    series = [p for p in training_series(study.trained) if p.costs.get("training_flops", 0) > 0]
    if not series:
        raise NotEnoughDataError("the records do not know the training compute")
    if len(series) == len({p.width for p in series}):
        raise NotEnoughDataError("every width was evaluated at one length of training only")
    return series, _law(series, study.info)


def figure_3(study: Study) -> Drawing:
    """Quality, alignment and held-out loss against training compute, as far as recorded (Fig. 3).

    Raises:
      NotEnoughDataError: none of the three was recorded at several lengths of training.
    """
    shown: list[tuple[MetricInfo, list[Point], PowerLaw]] = []
    reasons, sampled = [], ""
    for metric in dict.fromkeys((study.metric, ALIGNMENT)):
        if not any(metric in p.records[0].metrics for p in study.trained):
            continue
        other = Study.from_records(
            study.records, metric=metric, axis=study.axis, family=study.family
        )
        try:
            series, law = trained_law(other)
        except NotEnoughDataError as error:
            reasons.append(str(error))
            continue
        at = series[0]
        sampled = (
            f"Trainings sampled with {style.sampler_label(at.sampler)}, {at.steps} steps, "
            f"guidance {at.guidance:g}, N = {at.num_samples} images. "
        )
        shown.append((other.info, series, law))
    if (losses := loss_law(study)) is not None:
        shown.append((METRICS["loss"], *losses))
    if not shown:
        raise NotEnoughDataError(reasons[0])

    def panel(info: MetricInfo, series: Sequence[Point], law: PowerLaw) -> Panel:
        return Panel(lambda figure: _training_panel(figure, info, series, law))

    return Drawing(
        name="figure_3",
        title="Quality against training compute",
        caption=f"{sampled}Numbers on the lines are widths, bands 95 % intervals. "
        f"{' '.join(_law_words(info, law) for info, _, law in shown)} {conditions(study)} "
        "After the paper's Fig. 3.",
        alt="Quality against training FLOPs, one line a width, with the fitted power law where the "
        "data support one.",
        panels=tuple(panel(*each) for each in shown),
    )


def loss_law(study: Study) -> tuple[list[Point], PowerLaw] | None:
    """Held-out losses along the training runs, and their power law; None if not recorded."""
    losses = validation_points(study.records, study.family)
    if len(losses) <= len({p.width for p in losses}):
        return None
    return losses, _law(losses, METRICS["loss"])


def _law(series: Sequence[Point], info: MetricInfo) -> PowerLaw:
    sigma, values = (np.array([getattr(p, k) for p in series]) for k in ("sigma", "value"))
    return fit_power_law(training_compute(series), values, sigma, info)


def _law_words(info: MetricInfo, law: PowerLaw) -> str:
    if not law.supported:
        return f"{info.label}: no power law is drawn, as {law.reason}."
    low, high = law.interval
    return (
        f"{info.label}: the dotted power law has exponent {law.improvement:.2f} "
        f"[{low:.2f}, {high:.2f}]{' and a floor' if law.has_floor else ''}."
    )


def _training_panel(
    figure: Figure | SubFigure, info: MetricInfo, series: Sequence[Point], law: PowerLaw
) -> None:
    ax = style.axes(figure)
    colours = style.width_colours([p.width for p in series])
    starts = {}
    for w, colour in colours.items():
        mine = [p for p in series if p.width == w]
        curve(ax, training_compute(mine), mine, colour)
        starts[w] = (float(training_compute(mine)[0]), mine[0].value)
    ax.set_xscale("log")
    style.quality_axis(ax, np.array([p.value for p in series]))
    limits = ax.get_ylim()
    if law.supported:
        compute = training_compute(series)
        x = np.geomspace(compute.min(), compute.max(), 80)
        low, high = law.band(x)
        ax.fill_between(x, low, high, color=style.MUTED, alpha=0.15, linewidth=0)
        ax.plot(x, law(x), ":", color=style.INK, linewidth=1.4)
        ax.set_ylim(limits)
    style.log_axis(ax.xaxis)
    ax.set_xlabel("training compute (FLOPs)")
    ax.set_ylabel(f"{info.label} {info.arrow}")
    ax.set_title(info.label)
    headroom(ax, info)
    start_labels(ax, info, starts, colours)


def figure_8(study: Study) -> Drawing:
    """Quality against guidance rate at several step counts, and the best rate (Fig. 8)."""
    sampler = default_sampler(study)
    best = [b for b in best_guidance(study) if b.point.sampler == sampler]
    if not best:
        raise NotEnoughDataError("only one guidance rate was sampled")
    swept = sorted({b.point.width for b in best})
    shown = [swept[0], swept[-1]] if len(swept) > 1 else swept
    panels = [Panel(_rate_curves(study, w, sampler)) for w in shown]
    return Drawing(
        name="figure_8",
        title="The best guidance rate",
        caption=f"{style.sampler_label(sampler)}. Lines of the first panels are step counts (at "
        "their right ends), dots the best rates. Last panel: the best rate of every width, shifted "
        "sideways to be told apart; thin bars join the rates that cannot be told from it at the "
        f"5 % level, hollow dots are less than 95 % sure. {conditions(study)} "
        "After the paper's Fig. 8.",
        alt="Quality against guidance rate for several step counts, for the smallest and the "
        "largest width, and the best rate against steps for every width with its uncertainty.",
        panels=(*panels, Panel(lambda figure: _best_rates(figure, study, best))),
    )


def _rate_curves(study: Study, width: int, sampler: str):
    def draw(figure: Figure | SubFigure) -> None:
        ax = style.axes(figure, right=0.5)
        mine = [p for p in study.points if (p.width, p.sampler) == (width, sampler)]
        steps = sorted({p.steps for p in mine})
        shades = [str(g) for g in np.linspace(0.68, 0.2, len(steps))]
        ends = []
        for n, shade in zip(steps, shades, strict=True):
            points = best_by_rate([p for p in mine if p.steps == n], study.info.sign)
            if len(points) < 2:
                continue
            x = np.array([p.guidance for p in points])
            curve(ax, x, points, shade, marker="")
            top = min(points, key=lambda p: study.info.sign * p.value)
            colour = style.width_colours(study.widths)[width]
            ax.plot([top.guidance], [top.value], "o", color=colour, markersize=5, zorder=5)
            ends.append((float(x[-1]), points[-1].value, str(n), shade))
        style.quality_axis(ax, np.array([p.value for p in study.points]))
        ax.set_xlabel("guidance rate")
        ax.set_ylabel(quality_label(study))
        ax.set_title(f"Width {width}, by steps")
        style.label_lines(ax, ends, where="right")

    return draw


def _best_rates(figure: Figure | SubFigure, study: Study, best: Sequence) -> None:
    ax: Axes = style.axes(figure, right=0.5)
    colours = style.width_colours(study.widths)
    ends = []
    for i, w in enumerate(study.widths):
        mine = [b for b in best if b.point.width == w]
        if not mine:
            continue
        dodge = 1.03 ** (i - (len(study.widths) - 1) / 2)
        x = np.array([b.point.steps * dodge for b in mine])
        y = [b.point.guidance for b in mine]
        low, high = [min(b.tied) for b in mine], [max(b.tied) for b in mine]
        ax.vlines(x, low, high, color=colours[w], alpha=0.45, linewidth=1.2)
        ax.plot(x, y, color=colours[w], linewidth=1.2, alpha=0.8)
        for xi, yi, b in zip(x, y, mine, strict=True):
            face = colours[w] if b.probability >= 0.95 else "white"
            ax.plot([xi], [yi], "o", color=colours[w], markerfacecolor=face, markersize=4.5)
        ends.append((float(x[-1]), float(y[-1]), str(w), colours[w]))
    ax.set_xscale("log")
    style.log_axis(ax.xaxis)
    ax.set_xlabel("sampling steps")
    ax.set_ylabel("best guidance rate")
    ax.set_title("Best rate, by width")
    style.label_lines(ax, ends, where="right")


def figure_table_1(rows: Sequence[FamilyRow] | None = None) -> Drawing:
    """FLOPs of the paper's family, published and counted, with the misprint marked (Table 1).

    Args:
      rows: the table, counted from the networks if not given.
    """
    rows = family_table() if rows is None else rows

    def draw(figure: Figure | SubFigure) -> None:
        ax = style.axes(figure)
        colours = style.width_colours([r.width for r in rows])
        x = [r.width for r in rows]
        ax.plot(x, [r.flops / 1e9 for r in rows], color=style.MUTED, linewidth=1, zorder=2)
        for r in rows:
            ax.scatter(
                r.width, r.flops / 1e9, s=60, facecolor="none", edgecolor=colours[r.width],
                linewidth=2, zorder=3,
            )  # fmt: skip
            ax.plot(r.width, r.published_flops / 1e9, "x", color=style.INK, markersize=4, zorder=4)
            if "gflops" in r.misprints:
                ax.annotate(
                    f"misprint: {r.published_flops / 1e9:g}",
                    (r.width, r.published_flops / 1e9),
                    xytext=(10, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color="#b3261e",
                )
        ax.set_xscale("log")
        ax.set_yscale("log")
        apart = [w for w in x if w in (64, 96, 128, 192, 256, 320, 512, 768)]  # as fit side by side
        ax.set_xticks(apart, [str(w) for w in apart])
        ax.minorticks_off()
        style.log_axis(ax.yaxis)
        ax.set_xlabel("width c")
        ax.set_ylabel("GFLOPs of one evaluation")
        ax.set_title("Published (×) and counted (○)")

    return Drawing(
        name="table_1",
        title="The paper's family, published and counted",
        caption="GFLOPs (2 × multiply-accumulates of convolutions and matrix products) of one "
        "evaluation of a 64×64×4 latent with 77 tokens, counted from the traced network, against "
        "the paper's Table 1. Its 25.3 for c = 64 contradicts its own normalised cost "
        "(0.07 × 789.3 = 55): a misprint.",
        alt="GFLOPs against width for the eleven models: the published and the counted values "
        "agree except at width 64, where the paper misprints 25.3.",
        panels=(Panel(draw),),
    )
