"""The paper's claims, put to the data: holds, does not hold, or undecided, with a probability.

arXiv:2404.01367 says that "smaller models initially outperform larger models in image quality for
a given sampling budget, but larger models surpass them in detail generation when computational
constraints are relaxed". Made precise here over all pairs of widths:

- a pair is compared where both can afford something, from the cheapest setting of the larger one
  to the end of the swept costs, on a logarithmic axis;
- *small budgets* are the lower half of that range, the *largest budget* is its end;
- the first claim holds in a bootstrap draw if, averaged over pairs, the smaller model is better
  over more than half of the small budgets; the second if the larger is better at the largest
  budget in more than half of the pairs. Models of equal quality satisfy either in half the draws.

The probability of a claim is the share of draws in which it holds.
"""

import dataclasses
import itertools
import math
from collections.abc import Hashable

import numpy as np

from ldm_scaling.analysis.frontier import Frontier

CERTAIN = 0.95


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim and what the data say.

    `probability` is NaN where nothing can be said (no pair to compare, or no uncertainty known).
    `verdict` is "holds", "does not hold", "undecided" or "not testable".
    """

    name: str
    statement: str
    probability: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """A smaller and a larger width over the costs that both can afford.

    Attributes:
      smaller_at_small: mean share of the small budgets on which the smaller is better.
      larger_at_large: probability that the larger is better at the largest budget.
      first_cost, last_cost: the range compared.
      overtakes: 2.5 %, 50 % and 97.5 % points of the cost from which on the larger stays better;
        `first_cost` if from the start, inf if never within the sweep.
    """

    smaller: Hashable
    larger: Hashable
    smaller_at_small: float
    larger_at_large: float
    first_cost: float
    last_cost: float
    overtakes: tuple[float, float, float]


def verdict(probability: float) -> str:
    """Word for a probability: certain at 95 % either way, undecided between."""
    if math.isnan(probability):
        return "not testable"
    if probability >= CERTAIN:
        return "holds"
    return "does not hold" if probability <= 1 - CERTAIN else "undecided"


def _small_budget_weights(costs: np.ndarray) -> np.ndarray:
    """Length in log cost of each step [K] within the lower half of the range."""
    if len(costs) == 1:
        return np.ones(1)
    logs = np.log(costs)
    middle = (logs[0] + logs[-1]) / 2
    edges = np.minimum(np.append(logs, logs[-1]), middle)
    return np.diff(edges)


def _better(draws: np.ndarray, a: int, b: int) -> np.ndarray:
    """[D, K]: 1 where group a is better than b, 0 where worse, 1/2 where equal."""
    return 0.5 + 0.5 * np.sign(draws[:, b] - draws[:, a])


def _pair_draws(frontier: Frontier, small: int, large: int):
    """Contested costs [K'], and where the smaller is better there [D, K']; None if nowhere."""
    both = (frontier.choice[small] >= 0) & (frontier.choice[large] >= 0)
    if not both.any():
        return None
    return frontier.costs[both], _better(frontier.draws[:, :, both], small, large)


def compare_pairs(frontier: Frontier) -> list[Pair]:
    """All pairs of groups that share affordable costs, smaller first."""
    found = []
    for small, large in itertools.combinations(range(len(frontier.groups)), 2):
        shared = _pair_draws(frontier, small, large)
        if shared is None:
            continue
        costs, smaller_better = shared
        weight = _small_budget_weights(costs)
        share = smaller_better @ weight / weight.sum()
        # From the end backwards, how long the larger has been better without interruption.
        larger_since = np.cumprod(smaller_better[:, ::-1] < 0.5, axis=1).sum(axis=1)
        first = len(costs) - larger_since
        crossing = np.append(costs, np.inf)[first]
        low, mid, high = np.quantile(crossing, [0.025, 0.5, 0.975], method="nearest")
        found.append(
            Pair(
                smaller=frontier.groups[small],
                larger=frontier.groups[large],
                smaller_at_small=float(share.mean()),
                larger_at_large=float(1 - smaller_better[:, -1].mean()),
                first_cost=float(costs[0]),
                last_cost=float(costs[-1]),
                overtakes=(float(low), float(mid), float(high)),
            )
        )
    return found


def paper_claims(frontier: Frontier, *, certain: bool = True) -> list[Claim]:
    """The paper's two claims about sampling efficiency, judged by `frontier` of widths.

    Args:
      frontier: traced by width.
      certain: whether the points have uncertainties; without, nothing is testable.
    """
    shares, larger = [], []
    for small, large in itertools.combinations(range(len(frontier.groups)), 2):
        shared = _pair_draws(frontier, small, large)
        if shared is None:
            continue
        costs, smaller_better = shared
        weight = _small_budget_weights(costs)
        shares.append(smaller_better @ weight / weight.sum())
        larger.append(1 - smaller_better[:, -1])
    testable = certain and bool(shares)
    p_small = _probability(shares) if testable else math.nan
    p_large = _probability(larger) if testable else math.nan
    return [
        Claim(
            "smaller wins at small cost",
            "At small sampling budgets a smaller model gives better quality than a larger one at "
            "equal cost",
            p_small,
            verdict(p_small),
        ),
        Claim(
            "larger wins at large cost",
            "At the largest sampling budget of the sweep a larger model gives better quality than "
            "a smaller one",
            p_large,
            verdict(p_large),
        ),
    ]


def _probability(by_pair: list[np.ndarray]) -> float:
    mean = np.mean(by_pair, axis=0)
    return float(((mean > 0.5) + 0.5 * (mean == 0.5)).mean())
