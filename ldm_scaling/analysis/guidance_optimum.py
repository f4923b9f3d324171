"""The best guidance rate for every (width, sampler, steps), and which rates it cannot be told from.

After Fig. 8 of arXiv:2404.01367, which shows the rate of the best FID; here with how sure that
choice is.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ldm_scaling.analysis.frontier import win_probability
from ldm_scaling.analysis.study import Point, Study

_ONE_SIDED_95 = 1.6448536269514722


@dataclasses.dataclass(frozen=True)
class BestGuidance:
    """The best rate of one (width, sampler, steps).

    Attributes:
      point: the setting with the best metric.
      probability: share of bootstrap draws in which this rate is best; NaN without intervals.
      tied: rates, ascending and including the best, that are not worse at the 5 % level
        (one-sided, each against the best).
      rates: all rates tried, ascending.
    """

    point: Point
    probability: float
    tied: tuple[float, ...]
    rates: tuple[float, ...]

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the last one tried on either side, so may lie outside."""
        return self.point.guidance in (self.rates[0], self.rates[-1])


def best_guidance(study: Study, *, draws: int = 2000, seed: int = 0) -> list[BestGuidance]:
    """Best rate of every (width, sampler, steps) at which at least two rates were tried."""
    cells: dict[tuple[int, str, int], list[Point]] = defaultdict(list)
    for point in study.points:
        cells[point.width, point.sampler, point.steps].append(point)
    rng = np.random.default_rng(seed)
    found = []
    for key in sorted(cells):
        points = best_by_rate(cells[key], study.info.sign)
        if len(points) < 2:
            continue
        values = study.info.sign * np.array([p.value for p in points])
        sigma = np.nan_to_num(np.array([p.sigma for p in points]))
        best = int(np.argmin(values))
        margin = _ONE_SIDED_95 * np.hypot(sigma, sigma[best])
        drawn = values + sigma * rng.standard_normal((draws, len(points)))
        certain = bool(sigma.any())
        found.append(
            BestGuidance(
                point=points[best],
                probability=float(win_probability(drawn[:, :, None])[best, 0])
                if certain
                else math.nan,
                tied=tuple(
                    p.guidance
                    for p, far in zip(points, values - values[best] > margin, strict=True)
                    if not far
                ),
                rates=tuple(p.guidance for p in points),
            )
        )
    return found


def fair_points(study: Study) -> tuple[list[Point], str]:
    """Points for comparing samplers: at steps and guidance rates that every sampler was given.

    A sampler must not win for having been tried at cheaper steps or better rates than the others.

    Returns:
      The points, and which they are in words: "3, 5, 10 steps, guidance 2.5". All points and ""
      where no setting is shared.
    """
    by_sampler = [
        {(p.steps, p.guidance) for p in study.points if p.sampler == s} for s in study.samplers
    ]
    shared = set.intersection(*by_sampler)
    if not shared:
        return list(study.points), ""
    steps, rates = (
        ", ".join(f"{x:g}" for x in sorted(set(xs))) for xs in zip(*shared, strict=True)
    )
    points = [p for p in study.points if (p.steps, p.guidance) in shared]
    return points, f"{steps} steps, guidance {rates}"


def best_by_rate(points: Sequence[Point], sign: float) -> list[Point]:
    """One point a guidance rate, ascending: the best where other coordinates vary too."""
    by_rate: dict[float, Point] = {}
    for point in points:
        held = by_rate.get(point.guidance)
        if held is None or sign * point.value < sign * held.value:
            by_rate[point.guidance] = point
    return [by_rate[rate] for rate in sorted(by_rate)]


def best_by_steps(
    study: Study, width: int, sampler: str, points: Sequence[Point] | None = None
) -> list[Point]:
    """The best setting of one width and sampler at each number of steps, ascending.

    Looks among `points`, the study's by default.
    """
    by_steps: dict[int, Point] = {}
    for p in study.points if points is None else points:
        if (p.width, p.sampler) != (width, sampler):
            continue
        held = by_steps.get(p.steps)
        if held is None or study.info.sign * p.value < study.info.sign * held.value:
            by_steps[p.steps] = p
    return [by_steps[steps] for steps in sorted(by_steps)]
