"""What a setting costs: the two cost axes, and Table 1 with our own count beside the published one.

The paper's sampling cost is (cost of one network evaluation relative to a reference model) x steps;
it does not count guidance's second evaluation (arXiv:2404.01367, Sec. 3.3.2). Records carry both.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from fractions import Fraction

from ldm_scaling.analysis.study import Point, Study

_TOKENS = 77  # of a text encoder such as the paper's; its FLOPs fit ours with these


@dataclasses.dataclass(frozen=True)
class CostAxis:
    """A cost to compare at: its label, and in words."""

    label: str
    words: str


AXES: Mapping[str, CostAxis] = {
    "sampling_cost": CostAxis("sampling cost (norm. cost × steps)", "normalised cost × steps"),
    "sampling_cost_guided": CostAxis(
        "sampling cost (norm. cost × evaluations)",
        "normalised cost × network evaluations, guidance's second one counted",
    ),
}


def image_flops(point: Point) -> float:
    """FLOPs (2 x MAC) of the network for one image, guidance counted; 0 where not recorded."""
    return point.costs.get("flops_per_evaluation", 0.0) * point.costs.get("evaluations", 0.0)


def reference_width(study: Study) -> int | None:
    """The width whose evaluation costs 1 in these records; None if it is not among them."""
    for point in study.points:
        if abs(point.costs.get("normalized_cost", 0.0) - 1.0) < 1e-3:
            return point.width
    return None


def si(value: float | int, unit: str = "") -> str:
    """A number with three digits and an SI prefix: `si(5.03e9, "FLOP")` is "5.03 GFLOP"."""
    for power, prefix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 0.9995 * 10.0**power:
            return f"{digits(value / 10.0**power)} {prefix}{unit}".rstrip()
    return f"{digits(value)} {unit}".rstrip()


def digits(value: float | int, n: int = 3) -> str:
    """A number to n significant digits, without trailing zeros; exponents only where needed."""
    if value != value:
        return "–"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{n - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    text = f"{float(f'{value:.{n}g}'):f}"
    return text.rstrip("0").rstrip(".").replace("-", "−") or "0"


def count(value: float) -> str:
    """A number of parameters as the paper prints it: "39M", "2B"."""
    return f"{value / 1e9:.0f}B" if value >= 1e9 else f"{value / 1e6:.0f}M"


@dataclasses.dataclass(frozen=True)
class FamilyRow:
    """A model of the paper's Table 1: as printed, and as counted from our network.

    Parameters are numbers, FLOPs 2 x MAC of one evaluation, costs relative to width 320.
    `misprints` names the printed fields that contradict the rest of the paper.
    """

    width: int
    published_parameters: float
    parameters: float
    published_flops: float
    flops: float
    published_cost: float
    cost: float
    fid: float
    clip: float
    misprints: tuple[str, ...]


def quadratic(values: Mapping[int, int]) -> Callable[[int], Fraction]:
    """The polynomial of second degree through three points, in exact arithmetic."""
    (a, fa), (b, fb), (c, fc) = values.items()

    def at(x: int) -> Fraction:
        return (
            Fraction(fa * (x - b) * (x - c), (a - b) * (a - c))
            + Fraction(fb * (x - a) * (x - c), (b - a) * (b - c))
            + Fraction(fc * (x - a) * (x - b), (c - a) * (c - b))
        )

    return at


@functools.cache
def family_table() -> tuple[FamilyRow, ...]:
    """Table 1 of arXiv:2404.01367, published and counted; no weight is allocated.

    Three networks are traced and the others follow exactly: every channel count of the family is a
    multiple of the width, so parameters and FLOPs are polynomials of second degree in it.
    """
    from ldm_scaling.unet import family  # the networks are not needed by the rest of the room
    from ldm_scaling.unet.flops import forward_flops, parameter_count

    traced = {w: family.unet_config(w) for w in (64, 320, 768)}
    parameters = quadratic({w: int(parameter_count(c)) for w, c in traced.items()})
    count_flops = quadratic({w: int(forward_flops(c, _TOKENS)) for w, c in traced.items()})
    flops = {w: float(count_flops(w)) for w in family.WIDTHS}
    return tuple(
        FamilyRow(
            width=width,
            published_parameters=row.parameters,
            parameters=float(parameters(width)),
            published_flops=row.gflops * 1e9,
            flops=flops[width],
            published_cost=row.normalized_cost,
            cost=flops[width] / flops[family.REFERENCE_WIDTH],
            fid=row.fid,
            clip=row.clip,
            misprints=row.misprints,
        )
        for width, row in family.PUBLISHED.items()
    )
