"""Quality against training compute, and a power law where the data support one.

The paper's Fig. 3 (arXiv:2404.01367) shows quality falling on common trends in training compute.
Here `y = a * (C / C0)^-b`, or with a floor `y = c + a * (C / C0)^-b` where AICc prefers it, fitted
by weighted least squares. For fixed `b` the rest is linear, so the fit is a search in one
dimension and cannot get stuck. Its interval comes from refitting data drawn about the fit, with
the points' standard errors widened to the scatter that is seen (points of one training run are
not independent, so it is still a lower bound of the doubt).
"""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from ldm_scaling.analysis.ranking import MetricInfo
from ldm_scaling.analysis.study import Point, comparable_points
from ldm_scaling.records import Record

_EXPONENTS = np.linspace(-3.0, 3.0, 61)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """A fit, or why there is none.

    `y(C) = c + a * (C / reference)^-b`. `improvement` is the exponent with the sign that makes
    improvement positive; `interval` is its 95 % bootstrap interval. `reason` is "" if the data
    support the fit; otherwise it says why they do not, and the numbers are what was tried (NaN if
    nothing could be).
    """

    a: float
    b: float
    c: float
    reference: float
    improvement: float
    interval: tuple[float, float]
    r_squared: float
    num_points: int
    reason: str
    curves: np.ndarray | None = None  # [D, 3] bootstrap draws of a, b, c

    @property
    def supported(self) -> bool:
        """Whether the data support a power law."""
        return not self.reason

    @property
    def has_floor(self) -> bool:
        """Whether the fitted law has a floor `c`."""
        return self.c != 0.0

    def __call__(self, compute: np.ndarray) -> np.ndarray:
        """The fitted metric at training compute [N]."""
        return self.c + self.a * (np.asarray(compute) / self.reference) ** -self.b

    def band(self, compute: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise bootstrap interval of the fit at training compute [N]: two arrays [N]."""
        if self.curves is None:
            raise ValueError("curves=None: there is no fit, so no band")
        a, b, c = (column[:, None] for column in self.curves.T)
        y = c + a * (np.asarray(compute)[None] / self.reference) ** -b
        low, high = np.quantile(y, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high


def fit_power_law(
    compute: np.ndarray,
    values: np.ndarray,
    sigma: np.ndarray,
    info: MetricInfo,
    *,
    draws: int = 300,
    seed: int = 0,
) -> PowerLaw:
    """Fits the law to points of training compute [N] > 0, metric values [N], standard errors [N].

    A fit is supported if there are at least 4 distinct computes over a factor of 3 or more, the
    law explains at least half of the variance, and the interval of the exponent excludes 0.
    """
    compute, values = np.asarray(compute, float), np.asarray(values, float)
    n, distinct = len(values), len(np.unique(compute))
    spread = float(compute.max() / compute.min()) if n else 0.0
    if distinct < 4:
        return _no_fit(n, f"only {distinct} different amounts of training compute; 4 are needed")
    if spread < 3:
        return _no_fit(n, f"training compute spans only a factor of {spread:.2g}; 3 is needed")
    reference = float(np.exp(np.log(compute).mean()))
    x, weight = compute / reference, _weights(sigma)
    floors = _floors(values, info)
    fit = _fit(x, values, weight, distinct, floors)
    scatter = math.sqrt(fit.loss * n / (n - fit.parameters)) / np.sqrt(weight)
    scatter = np.maximum(scatter, np.nan_to_num(np.asarray(sigma, float)))
    noise = np.random.default_rng(seed).standard_normal((draws, n))
    again = [_fit(x, fit(x) + scatter * e, weight, distinct, floors) for e in noise]
    curves = np.array([(f.a, f.b, f.c) for f in again])
    # b > 0 shrinks the power term; that is improvement if the term lies on the worse side.
    towards = info.sign * np.sign(curves[:, 0])
    low, high = (float(q) for q in np.quantile(curves[:, 1] * towards, [0.025, 0.975]))
    total = float(np.average((values - np.average(values, weights=weight)) ** 2, weights=weight))
    r_squared = 1.0 - fit.loss / total if total > 0 else 0.0
    reason = ""
    if r_squared < 0.5:
        reason = f"compute alone explains only {100 * max(r_squared, 0.0):.0f} % of the variance"
    elif low <= 0 <= high:
        reason = f"the exponent's 95 % interval [{low:.2g}, {high:.2g}] includes 0"
    improvement = fit.b * info.sign * math.copysign(1.0, fit.a)
    return PowerLaw(
        fit.a, fit.b, fit.c, reference, improvement, (low, high), r_squared, n, reason, curves
    )


@dataclasses.dataclass(frozen=True)
class _Curve:
    a: float
    b: float
    c: float
    loss: float
    parameters: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.c + self.a * x**-self.b

    def aicc(self, n: int, scale: float) -> float:
        k = self.parameters + 1  # and the residual variance
        if n <= k + 1:
            return math.inf
        return n * math.log(max(self.loss, 1e-9 * scale)) + 2 * k * n / (n - k - 1)


def _no_fit(n: int, reason: str) -> PowerLaw:
    nan = math.nan
    return PowerLaw(nan, nan, nan, nan, nan, (nan, nan), nan, n, reason)


def _weights(sigma: np.ndarray) -> np.ndarray:
    """Inverse variances of mean 1; equal where the standard errors are unknown.

    A floor of a third of the median keeps one lucky interval from ruling the fit.
    """
    sigma = np.asarray(sigma, float)
    known = sigma[np.isfinite(sigma) & (sigma > 0)]
    if not len(known):
        return np.ones_like(sigma)
    typical = float(np.median(known))
    sigma = np.maximum(np.nan_to_num(sigma, nan=typical), typical / 3)
    weight = sigma**-2
    return weight / weight.mean()


def _linear(x: np.ndarray, y: np.ndarray, weight: np.ndarray, b: np.ndarray, floor: bool):
    """Weighted least squares of a (and c) for each exponent b [E]: a, c, loss, each [E]."""
    basis = x[None] ** -b[:, None]
    w = weight / weight.sum()
    mean_p, mean_y = (basis @ w, float(w @ y)) if floor else (np.zeros(len(b)), 0.0)
    p, r = basis - mean_p[:, None], y - mean_y
    power = (p * p) @ w
    a = np.divide((p * r) @ w, power, out=np.zeros_like(power), where=power > 1e-12)
    loss = ((r[None] - a[:, None] * p) ** 2) @ w
    return a, mean_y - a * mean_p, loss


def _fit_form(x: np.ndarray, y: np.ndarray, weight: np.ndarray, floor: bool) -> _Curve:
    # With a floor, b and -b bend opposite ways; a saturating law is b > 0.
    grid = _EXPONENTS[_EXPONENTS > 0.05] if floor else _EXPONENTS
    for _ in range(3):  # each grid lies about the best of the one before, 20 times as fine
        best = float(grid[np.argmin(_linear(x, y, weight, grid, floor)[2])])
        step = float(grid[1] - grid[0])
        grid = best + np.linspace(-step, step, 41)
    a, c, loss = (q[0].item() for q in _linear(x, y, weight, np.array([best]), floor))
    return _Curve(a, best, c if floor else 0.0, loss, 3 if floor else 2)


def _floors(values: np.ndarray, info: MetricInfo) -> tuple[float, float]:
    """Floors that a law may level off at: a distance or loss at 0 or above, a score not far beyond.

    Points that still bend downwards fit best with a floor out of the world, which is no finding.
    """
    if info.lower_is_better:
        return 0.0, math.inf
    return -math.inf, float(2 * values.max() - values.min())


def _fit(
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    distinct: int,
    floors: tuple[float, float],
) -> _Curve:
    """The law without a floor, unless AICc clearly prefers one that can be (of points enough)."""
    plain = _fit_form(x, y, weight, False)
    if distinct < 6:
        return plain
    floored = _fit_form(x, y, weight, True)
    n, scale = len(y), float(y.var())
    possible = floors[0] <= floored.c <= floors[1]
    return floored if possible and floored.aicc(n, scale) < plain.aicc(n, scale) - 2 else plain


def training_series(points: Sequence[Point]) -> list[Point]:
    """The points of that sampling setting which was evaluated at most (width, training) pairs.

    The paper compares training runs at one sampler, step count and guidance rate.
    """
    groups: dict[str, list[Point]] = defaultdict(list)
    for p in points:
        rest = {k: v for k, v in p.setting.items() if k not in ("width", "training_steps")}
        groups[json.dumps(rest, sort_keys=True)].append(p)
    if not groups:
        return []
    chosen = max(sorted(groups), key=lambda key: len(groups[key]))
    return sorted(groups[chosen], key=lambda p: (p.width, p.training_steps))


def validation_points(records: Iterable[Record], family: str) -> list[Point]:
    """Losses on held-out examples during the training runs of a family, by width and step."""
    held_out = [
        r
        for r in records
        if r.protocol.get("split") == "validation"
        and r.point.get("family", "") == family
        and "width" in r.point
        and float(r.costs.get("training_flops", 0.0)) > 0
    ]
    points, _ = comparable_points(held_out, "loss", kind="training")
    return sorted(points, key=lambda p: (p.width, p.training_steps))


def training_compute(points: Iterable[Point]) -> np.ndarray:
    """Training FLOPs of each point [N]. Raises ValueError where a record has none."""
    flops = []
    for p in points:
        cost = p.costs.get("training_flops", 0.0)
        if not cost > 0:
            raise ValueError(
                f"record {p.records[0].hash}: costs['training_flops']={cost}: must be > 0"
            )
        flops.append(float(cost))
    return np.array(flops)
