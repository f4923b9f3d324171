"""Who wins at which cost, and how surely.

For every sampling cost the best metric among all affordable settings is traced, for each width (or
sampler) and over all of them, as the paper does by hand in its Fig. 9 (arXiv:2404.01367). The
certainty of a winner is found by a parametric bootstrap: every point is redrawn from a normal
distribution with its value and standard error, and the frontier is traced again.

The best of many noisy settings looks better than it is, the more so the more there are. The
bootstrap measures that optimism (its mean minimum against the observed one) and each draw is
shifted back by it, so that a width does not win for having been tried more often.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np

from ldm_scaling.analysis.study import Point, Study

LIKELY = 0.8  # the probability from which a winner is called one
_SHORT = 0.12  # of the logarithmic range of costs: shorter wins are told together


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Best affordable settings along the cost axis. G groups, K costs, D draws.

    Attributes:
      groups: what competes: widths or samplers, ascending.
      costs: float [K], every cost at which a setting becomes affordable, ascending.
      choice: int [G, K], index into `points` of each group's best affordable setting, -1 if none.
      score: float [G, K], its metric, signed so that lower is better; inf where none.
      draws: float [D, G, K], bootstrap draws of `score`.
      probability: float [G, K], share of draws each group wins (ties shared).
      points: the settings.
    """

    groups: tuple[Hashable, ...]
    costs: np.ndarray
    choice: np.ndarray
    score: np.ndarray
    draws: np.ndarray
    probability: np.ndarray
    points: tuple[Point, ...]

    @property
    def winner(self) -> np.ndarray:
        """int [K]: index of the group most likely to be best at each cost."""
        observed_best = self.score == self.score.min(axis=0)
        return np.argmax(self.probability + 1e-9 * observed_best, axis=0)  # observed breaks ties

    @property
    def contested(self) -> np.ndarray:
        """bool [K]: costs at which at least two groups can afford something."""
        return (self.choice >= 0).sum(axis=0) > 1


@dataclasses.dataclass(frozen=True)
class Segment:
    """A range of costs [low, high) with one winner, clear throughout or unclear throughout.

    Attributes:
      low, high: the range; `high` is inf for the last.
      group: the winner.
      probability: its mean probability over the range (in log cost).
      setting: its best setting within the range.
      runner_up: the likeliest other group, None if no other can afford anything.
      rivals: the other groups that somewhere in it are best with a probability above 0.1.
      contested: whether any other group can afford anything.
    """

    low: float
    high: float
    group: Hashable
    probability: float
    setting: Point
    runner_up: Hashable | None
    rivals: tuple[Hashable, ...]
    contested: bool


def trace(
    study: Study,
    *,
    by: str = "width",
    points: Sequence[Point] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Frontier:
    """Traces the frontier of `points` (the study's by default).

    Args:
      study: gives metric direction and cost axis.
      by: the attribute of a point that competes: "width" or "sampler".
      points: a subset, for instance of one sampler.
      draws: bootstrap draws. seed: of the bootstrap.

    Raises:
      ValueError: there are no points.
    """
    points = tuple(study.points if points is None else points)
    if not points:
        raise ValueError("points: none to trace; a frontier needs at least one")
    sign, cost = study.info.sign, np.array([p.costs[study.axis] for p in points])
    costs = merged_costs(cost)
    groups = tuple(sorted({getattr(p, by) for p in points}))
    rng = np.random.default_rng(seed)
    values = sign * np.array([p.value for p in points])
    sigma = np.nan_to_num(np.array([p.sigma for p in points]))
    drawn = values + sigma * rng.standard_normal((draws, len(points)))
    score = np.full((len(groups), len(costs)), np.inf)
    choice = np.full((len(groups), len(costs)), -1)
    best = np.full((draws, len(groups), len(costs)), np.inf)
    for g, group in enumerate(groups):
        members = np.array([i for i, p in enumerate(points) if getattr(p, by) == group])
        for k, limit in enumerate(costs):
            affordable = members[cost[members] <= limit]
            if not len(affordable):
                continue
            choice[g, k] = affordable[np.argmin(values[affordable])]
            score[g, k] = values[choice[g, k]]
            minimum = drawn[:, affordable].min(axis=1)
            optimism = minimum.mean() - score[g, k]
            best[:, g, k] = minimum - 2 * optimism
    return Frontier(groups, costs, choice, score, best, win_probability(best), points)


def merged_costs(cost: np.ndarray, tolerance: float = 1e-6) -> np.ndarray:
    """Distinct costs, ascending; those equal up to rounding are one (the larger)."""
    ordered = np.unique(cost)
    last_of_run = np.append(ordered[1:] > ordered[:-1] * (1 + tolerance), True)
    return ordered[last_of_run]


def win_probability(draws: np.ndarray) -> np.ndarray:
    """Share of draws [D, G, K] in which each group is lowest, ties shared: float [G, K]."""
    best = (draws == draws.min(axis=1, keepdims=True)) & np.isfinite(draws)
    return (best / np.maximum(best.sum(axis=1, keepdims=True), 1)).mean(axis=0)


def segments(frontier: Frontier) -> list[Segment]:
    """The frontier as consecutive ranges of costs, cut where the winner or its clearness changes.

    A winner is clear where its probability is at least `LIKELY`.
    """
    winner, costs = frontier.winner, frontier.costs
    clear = frontier.probability[winner, np.arange(len(costs))] >= LIKELY
    starts = [0, *(np.flatnonzero(np.diff(winner) | np.diff(clear)) + 1)]
    found = []
    for start, end in zip(starts, [*starts[1:], len(costs)], strict=True):
        g, span = int(winner[start]), slice(start, end)
        edges = np.append(costs[span], costs[end] if end < len(costs) else costs[-1])
        weight = np.diff(np.log(edges)) + 1e-12  # a single last cost still has weight
        mean = (frontier.probability[:, span] * weight).sum(axis=1) / weight.sum()
        others = [int(i) for i in np.argsort(-mean, kind="stable") if i != g]
        others = [i for i in others if frontier.choice[i, end - 1] >= 0]
        found.append(
            Segment(
                low=float(costs[start]),
                high=float(costs[end]) if end < len(costs) else float("inf"),
                group=frontier.groups[g],
                probability=float(mean[g]),
                setting=frontier.points[int(frontier.choice[g, end - 1])],
                runner_up=frontier.groups[others[0]] if others else None,
                rivals=tuple(
                    frontier.groups[i] for i in others if frontier.probability[i, span].max() > 0.1
                ),
                contested=bool(frontier.contested[span].any()),
            )
        )
    return found


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A range of costs told in one sentence: one clear winner, or several that share it.

    Attributes:
      low, high: the range; `high` is inf for the last.
      groups: the clear winner alone, or all that may well be best somewhere in it.
      probability: mean probability of the observed winners over the range (in log cost).
      setting: the best setting within the range.
      contested: whether two groups can afford anything.
    """

    low: float
    high: float
    groups: tuple[Hashable, ...]
    probability: float
    setting: Point
    contested: bool


def stretches(frontier: Frontier) -> list[Stretch]:
    """The frontier in few ranges: clear winners as they are, short or unsure ones together."""
    last = float(frontier.costs[-1])
    total = math.log(last / float(frontier.costs[0])) or 1.0

    def length(s: Segment | Stretch) -> float:
        return math.log(min(s.high, last) / s.low)

    def short(s: Segment | Stretch) -> bool:
        return s.high < math.inf and length(s) < _SHORT * total

    def told(run: Sequence[Segment]) -> Stretch:
        mean = np.average([s.probability for s in run], weights=[length(s) + 1e-9 for s in run])
        one = len({s.group for s in run}) == 1 and mean >= LIKELY
        groups = {s.group for s in run}
        groups |= {g for s in run if not one and s.probability < LIKELY for g in s.rivals}
        return Stretch(
            low=run[0].low,
            high=run[-1].high,
            groups=tuple(sorted(groups, key=frontier.groups.index)),
            probability=float(mean),
            setting=run[-1].setting,
            contested=any(s.contested for s in run),
        )

    # A short doubt within one group's win does not end it; then what is unclear goes together.
    runs: list[list[Segment]] = []
    for s in segments(frontier):
        if runs and s.group == runs[-1][-1].group and (short(s) or short(runs[-1][-1])):
            runs[-1].append(s)
        else:
            runs.append([s])
    merged: list[list[Segment]] = []
    merged_clear = False
    for run in runs:
        whole = told(run)
        clear = len(whole.groups) == 1 and not short(whole)
        if merged and not clear and not merged_clear:
            merged[-1] += run
        else:
            merged.append(run)
        merged_clear = clear
    return [told(run) for run in merged]
