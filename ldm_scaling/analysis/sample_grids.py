"""Grids of generated images: across widths, guidance rates, and at equal cost (Figs. 1, 7, 10).

Reads the strips that a sweep saves: `<samples_dir>/<record hash>.png`, the images of the first few
captions side by side as equal square tiles. Which captions is in the record's
`protocol["strip_captions"]`. Numbers of figures are those of arXiv:2404.01367.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from ldm_scaling.analysis import style
from ldm_scaling.analysis.cost import digits
from ldm_scaling.analysis.figures_cost import default_sampler
from ldm_scaling.analysis.frontier import merged_costs
from ldm_scaling.analysis.guidance_optimum import best_by_rate
from ldm_scaling.analysis.study import Point, Study
from ldm_scaling.analysis.style import Drawing, NotEnoughDataError, Panel

MAX_CAPTIONS = 6
_TILE, _LABEL, _GAP = 0.56, 0.92, 0.04  # inches: tile, row labels, between tiles


class Strips:
    """The strips in a folder, by record."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def tiles(self, point: Point) -> list[np.ndarray] | None:
        """Images uint8 [S, S, 3] of a point's first seed that has a strip; None if none has.

        Raises:
          ValueError: a strip is not a row of square tiles.
        """
        if self.folder is None:
            return None
        for record in point.records:
            path = self.folder / f"{record.hash}.png"
            if path.exists():
                with Image.open(path) as image:
                    strip = np.asarray(image.convert("RGB"))
                size = strip.shape[0]
                if strip.shape[1] % size:
                    raise ValueError(f"{path}: {strip.shape[1]}x{size} is not a row of squares")
                return [strip[:, i : i + size] for i in range(0, strip.shape[1], size)]
        return None

    def require(self, points: Sequence[Point]) -> list[tuple[Point, list[np.ndarray]]]:
        """The points that have strips. Raises NotEnoughDataError if none has."""
        found = [(p, tiles) for p in points if (tiles := self.tiles(p))]
        if not found:
            where = "no folder of samples was given" if self.folder is None else "no strip found"
            raise NotEnoughDataError(f"{where}, so there are no images to show")
        return found


def captions_of(point: Point) -> list[str]:
    """Captions of a point's strip, in the order of its tiles."""
    return [str(c) for c in point.records[0].protocol.get("strip_captions", ())]


def _grid_panel(
    title: str,
    rows: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    labels_above: bool = False,
) -> Panel:
    """Images in rows and columns; every tile the same size in inches.

    Row labels stand to the left, or above their rows if `labels_above`.
    """
    columns = max(len(row) for row in rows)
    wrap = textwrap.TextWrapper(11, max_lines=3, placeholder="…", break_long_words=False)
    heads = [wrap.fill(c) for c in column_labels]
    head = 0.13 * max((h.count("\n") + 1 for h in heads), default=0) + 0.1
    left, lift = (0.1, 0.2) if labels_above else (_LABEL, 0.0)
    pitch, row_pitch = _TILE + _GAP, _TILE + _GAP + lift
    width = left + columns * pitch + 0.1
    height = 0.34 + head + len(rows) * row_pitch + 0.1

    def draw(figure: Figure | SubFigure) -> None:
        def place(x: float, y: float) -> tuple[float, float]:
            return x / width, 1 - y / height

        figure.text(*place(0.1, 0.22), title, fontsize=9.5, fontweight="bold", va="center")
        for c, text in enumerate(heads[:columns]):
            x = left + c * pitch + _TILE / 2
            figure.text(*place(x, 0.34 + head - 0.05), text, fontsize=7.5, ha="center", va="bottom")
        for r, row in enumerate(rows):
            y = 0.34 + head + r * row_pitch + lift
            middle = y - lift / 2 if labels_above else y + _TILE / 2
            figure.text(
                *place(0.1, middle), row_labels[r], fontsize=7.5, va="center", linespacing=1.3
            )
            x0, y1 = place(left, y + _TILE)
            span = len(row) * pitch - _GAP
            ax = figure.add_axes((x0, y1, span / width, _TILE / height))
            ax.imshow(_joined(row), interpolation="none", aspect="auto")
            ax.set_axis_off()

    return Panel(draw, width, height)


def _joined(row: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles [S, S, 3] side by side with white between them: one image a row draws fast."""
    size = row[0].shape[0]
    white = np.full((size, round(size * _GAP / _TILE), 3), 255, np.uint8)
    parts = [part for image in row for part in (white, image)]
    return np.concatenate(parts[1:], axis=1)


def figure_family(study: Study, strips: Strips) -> Drawing:
    """The same captions and seeds drawn by every width at one setting (Fig. 1)."""
    sampler = default_sampler(study)
    candidates = [p for p in study.points if p.sampler == sampler]
    settings: dict[tuple[int, float], list[Point]] = {}
    for p in candidates:
        settings.setdefault((p.steps, p.guidance), []).append(p)
    # The setting that most widths share; of those the one that serves the widest best.
    most = max(len({p.width for p in ps}) for ps in settings.values())
    shared = [ps for _, ps in sorted(settings.items()) if len({p.width for p in ps}) == most]
    chosen = min(shared, key=lambda ps: study.info.sign * max(ps, key=lambda p: p.width).value)
    found = strips.require(sorted(chosen, key=lambda p: p.width))
    first = found[0][0]
    return Drawing(
        name="figure_1",
        title="One family, the same captions",
        caption=f"{style.sampler_label(sampler)}, {style.step_words(first.steps)}, guidance "
        f"{first.guidance:g}; the same captions and initial noise in each row. Not picked: the "
        "first captions of the evaluation. After the paper's Fig. 1.",
        alt=f"Generated images of {len(found)} widths for the captions "
        f"{', '.join(captions_of(first)[:8])}.",
        panels=(
            _grid_panel(
                "By width",
                [tiles[:8] for _, tiles in found],
                [f"c = {p.width}, {study.info.label} {digits(p.value)}" for p, _ in found],
                captions_of(first),
                labels_above=True,
            ),
        ),
    )


def figure_7(study: Study, strips: Strips) -> Drawing:
    """Images across guidance rates for a small and the largest width (Fig. 7)."""
    sampler = default_sampler(study)
    panels = []
    steps_shown = 0
    for width in dict.fromkeys((study.widths[0], study.widths[-1])):
        mine = [p for p in study.points if (p.width, p.sampler) == (width, sampler)]
        by_steps: dict[int, list[Point]] = {}
        for p in mine:
            by_steps.setdefault(p.steps, []).append(p)
        # As near to the paper's 50 steps as the sweep goes with several rates.
        several = [n for n, ps in by_steps.items() if len({p.guidance for p in ps}) > 1]
        if not several:
            continue
        steps_shown = min(several, key=lambda n: (abs(math.log(n / 50)), n))
        found = strips.require(best_by_rate(by_steps[steps_shown], study.info.sign))
        found = found[:8]  # as the paper shows
        rows = [
            [tiles[k] for _, tiles in found]
            for k in range(min(4, *(len(tiles) for _, tiles in found)))
        ]
        captions = captions_of(found[0][0])
        panels.append(
            _grid_panel(
                f"Width {width}, guidance rate from left to right",
                rows,
                [*captions, *[""] * len(rows)][: len(rows)],
                [f"{p.guidance:g}" for p, _ in found],
                labels_above=True,
            )
        )
    if not panels:
        raise NotEnoughDataError("only one guidance rate was sampled")
    return Drawing(
        name="figure_7",
        title="What guidance does",
        caption=f"{style.sampler_label(sampler)}, {style.step_words(steps_shown)}, the same "
        "initial noise along each row. After the paper's Fig. 7.",
        alt="Generated images for a few captions, guidance rate rising from left to right, for the "
        "smallest and the largest width.",
        panels=tuple(panels),
        columns=2,
    )


def equal_cost_sets(study: Study, targets: int = 4, tolerance: float = 1.25) -> list[list[Point]]:
    """Up to `targets` sets of settings of about equal cost, one a width, two widths or more.

    Costs are spread over the range that at least two widths share. Each width gives its best
    setting within a factor of `tolerance` of the cost.
    """
    costs = merged_costs(np.array([p.costs[study.axis] for p in study.points]))
    sets: dict[float, list[Point]] = {}
    for cost in costs:
        near: dict[int, Point] = {}
        for p in study.points:
            if abs(math.log(p.costs[study.axis] / cost)) > math.log(tolerance):
                continue
            held = near.get(p.width)
            if held is None or study.info.sign * p.value < study.info.sign * held.value:
                near[p.width] = p
        if len(near) > 1:
            sets[float(cost)] = [near[w] for w in sorted(near)]
    if not sets:
        return []
    shared = sorted(sets)
    wanted = np.geomspace(shared[0], shared[-1], targets)
    # Nearest cost to each target, preferring those that more widths can meet.
    picked = {min(shared, key=lambda c: abs(math.log(c / w)) - 0.25 * len(sets[c])) for w in wanted}
    return [sets[c] for c in sorted(picked)]


def figure_10(study: Study, strips: Strips) -> Drawing:
    """What each width draws for about the same sampling cost (Fig. 10)."""
    sets = equal_cost_sets(study)
    if not sets:
        raise NotEnoughDataError("no two widths were sampled at about the same cost")
    panels = []
    for points in sets:
        found = strips.require(points)
        if len(found) < 2:
            continue
        middle = math.exp(float(np.mean([math.log(p.costs[study.axis]) for p in points])))
        panels.append(
            _grid_panel(
                f"Sampling cost about {digits(middle, 2)}",
                [tiles[:MAX_CAPTIONS] for _, tiles in found],
                [_setting_label(p, study) for p, _ in found],
                captions_of(found[0][0]),
            )
        )
    if not panels:
        raise NotEnoughDataError("no two widths have strips at about the same cost")
    return Drawing(
        name="figure_10",
        title="Images at equal cost",
        caption="Each row is a width at its best setting (sampler, steps, guidance) within 25 % of "
        f"the cost above it; the same captions and initial noise throughout. Beside each row: "
        f"width, sampler and steps, {study.info.label}. After the paper's Fig. 10.",
        alt="Rows of generated images, one row a width, in blocks of about equal sampling cost.",
        panels=tuple(panels),
        columns=2,
    )


def _setting_label(p: Point, study: Study) -> str:
    short = {"dpmpp_2m": "DPM++"}.get(p.sampler, style.sampler_label(p.sampler))
    return f"c = {p.width}\n{short} {p.steps}\n{study.info.label.split('-')[0]} {digits(p.value)}"
