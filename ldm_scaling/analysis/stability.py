"""Would another seed have named another winner?

Each seed's records alone give a frontier; this compares their winners along the cost axis.
"""

import dataclasses
from collections.abc import Hashable

import numpy as np

from ldm_scaling.analysis.frontier import Frontier, merged_costs
from ldm_scaling.analysis.study import Study


@dataclasses.dataclass(frozen=True)
class Stability:
    """Winners by seed. S seeds, K costs.

    Attributes:
      seeds: those at which every point was measured.
      costs: float [K].
      winners: int [S, K], index into `groups`, -1 where nothing is affordable.
      groups: the competitors, ascending.
      agreement: share of the cost axis (logarithmic) on which all seeds name the same winner.
      match: float [K], share of seeds that name the frontier's winner.
    """

    seeds: tuple[int, ...]
    costs: np.ndarray
    winners: np.ndarray
    groups: tuple[Hashable, ...]
    agreement: float
    match: np.ndarray


def winner_stability(study: Study, frontier: Frontier) -> Stability | None:
    """Winner by seed against the frontier's; None with fewer than two seeds common to all points.

    Every seed sees the same settings, those of `frontier.points`, and ranks by its own values.
    """
    common = set.intersection(*(set(p.seed_values) for p in frontier.points))
    if len(common) < 2:
        return None
    seeds = tuple(sorted(common))
    # Which attribute competes is read off the groups: widths are numbers, samplers names.
    by = "width" if isinstance(frontier.groups[0], int) else "sampler"
    cost = np.array([p.costs[study.axis] for p in frontier.points])
    costs = merged_costs(cost)
    owner = np.array([frontier.groups.index(getattr(p, by)) for p in frontier.points])
    winners = np.full((len(seeds), len(costs)), -1)
    for s, seed in enumerate(seeds):
        values = study.info.sign * np.array([p.seed_values[seed] for p in frontier.points])
        for k, limit in enumerate(costs):
            affordable = np.flatnonzero(cost <= limit)
            winners[s, k] = owner[affordable[np.argmin(values[affordable])]]
    weight = np.append(np.diff(np.log(costs)), 0.0) if len(costs) > 1 else np.ones(1)
    same = (winners == winners[0]).all(axis=0)
    return Stability(
        seeds=seeds,
        costs=costs,
        winners=winners,
        groups=frontier.groups,
        agreement=float((same * weight).sum() / weight.sum()),
        match=(winners == frontier.winner[None]).mean(axis=0),
    )
