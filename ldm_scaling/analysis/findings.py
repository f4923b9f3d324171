"""What the records say, in plain words, each with how sure it is.

Every sentence is put together by rule from the analyses; none is written beforehand, and each rule
can also come out as "no" or "undecided".
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np

from ldm_scaling.analysis.claims import CERTAIN, Claim, paper_claims
from ldm_scaling.analysis.cost import digits, image_flops, si
from ldm_scaling.analysis.frontier import LIKELY, Frontier, Stretch, stretches, trace
from ldm_scaling.analysis.guidance_optimum import BestGuidance, fair_points
from ldm_scaling.analysis.scaling_fit import PowerLaw
from ldm_scaling.analysis.stability import Stability
from ldm_scaling.analysis.study import Point, Study
from ldm_scaling.analysis.style import sampler_label, step_words


@dataclasses.dataclass(frozen=True)
class Finding:
    """A sentence and how sure it is.

    Attributes:
      text: the sentence.
      probability: that it is so, NaN where none can be given.
      word: what is said of it; by default "sure", "likely" or "undecided" from the probability,
        and "" without one.
    """

    text: str
    probability: float = math.nan
    word: str = ""

    def __post_init__(self) -> None:
        if not self.word and not math.isnan(self.probability):
            word = "likely" if self.probability >= LIKELY else "undecided"
            object.__setattr__(self, "word", "sure" if self.probability >= CERTAIN else word)


def setting_words(point: Point) -> str:
    """A sampling setting in words: "10 steps of DDIM at guidance 3"."""
    how = f"{step_words(point.steps)} of {sampler_label(point.sampler)}"
    return f"{how} at guidance {point.guidance:g}"


def value_words(study: Study, point: Point) -> str:
    """A metric with its 95 % half-width where known: "KD-Lite0 0.71 ± 0.02"."""
    half = 1.96 * point.sigma
    error = f" ± {digits(half, 2)}" if half > 0 else ""
    return f"{study.info.label} {digits(point.value)}{error}"


def probability_words(probability: float) -> str:
    """A probability to two digits, never rounded up to certainty: "P = 0.93", "P > 0.99"."""
    if math.isnan(probability):
        return "P unknown"
    if probability > 0.99:
        return "P > 0.99"
    return "P < 0.01" if probability < 0.01 else f"P = {probability:.2f}"


def _range_words(s: Stretch, frontier: Frontier) -> str:
    """Where a stretch lies; nothing is said of costs beyond the sweep."""
    first, last = frontier.costs[[0, -1]]
    if s.high == math.inf:
        if s.low == first:
            return f"At every cost of the sweep ({digits(first)} to {digits(last)})"
        if s.low == last:
            return f"At the largest cost of the sweep ({digits(last)})"
        return f"From a cost of {digits(s.low)} to the end of the sweep ({digits(last)})"
    if s.low == first:
        return f"Up to a cost of {digits(s.high)}"
    return f"From a cost of {digits(s.low)} to {digits(s.high)}"


def frontier_findings(study: Study, frontier: Frontier) -> list[Finding]:
    """Which width to take at which cost, with the setting that gives its best quality there."""
    found = []
    for s in stretches(frontier):
        p = s.setting
        flops = image_flops(p)
        cost = (
            f"cost {digits(p.costs[study.axis])}{f', {si(flops)}FLOPs an image' if flops else ''}"
        )
        how = f"{setting_words(p)} ({cost}), for {value_words(study, p)}"
        where = _range_words(s, frontier)
        if not s.contested:
            text = f"{where}, only width {s.groups[0]} is affordable: {how}."
            found.append(Finding(text))
        elif len(s.groups) == 1:
            text = f"{where}, width {s.groups[0]} is best: {how}."
            found.append(Finding(text, s.probability if study.has_uncertainty else math.nan))
        else:
            names = _list_words(s.groups)
            text = (
                f"{where}, no single width is the best: {names} take turns or cannot be told "
                f"apart; for instance width {p.width}: {how}."
            )
            found.append(Finding(text, word="undecided"))
    return found


def _list_words(names: Sequence[Hashable]) -> str:
    words = [str(n) for n in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def claim_findings(claims: Sequence[Claim]) -> list[Finding]:
    """The paper's claims with their verdicts; the probability is that of the claim."""
    return [Finding(f"{c.statement}.", c.probability, c.verdict) for c in claims]


def claims_by_sampler(study: Study) -> dict[str, list[Claim]]:
    """The claims judged with each sampler's points alone."""
    return {
        sampler: paper_claims(
            trace(study, points=[p for p in study.points if p.sampler == sampler]),
            certain=study.has_uncertainty,
        )
        for sampler in study.samplers
    }


def sampler_findings(study: Study, by_sampler: dict[str, list[Claim]]) -> list[Finding]:
    """Whether the sampler changes the first claim's verdict, and which one wins at which cost."""
    if len(by_sampler) < 2:
        return []
    verdicts = {s: claims[0] for s, claims in by_sampler.items()}
    parts = ", ".join(
        f"{sampler_label(s)} {c.verdict} ({probability_words(c.probability)})"
        for s, c in verdicts.items()
    )
    different = {c.verdict for c in verdicts.values()}
    if different & {"undecided", "not testable"}:
        head = "Whether the sampler changes which width wins at small cost is open"
    elif len(different) == 1:
        head = "The sampler does not change whether smaller widths win at small cost"
    else:
        head = "The sampler changes whether smaller widths win at small cost"
    found = [Finding(f"{head}: by sampler, the claim for {parts}.")]
    points, which = fair_points(study)
    frontier = trace(study, by="sampler", points=points)
    at = f" at what all were given ({which})" if len(points) < len(study.points) else ""
    for s in stretches(frontier):
        names = _list_words([sampler_label(str(g)) for g in s.groups])
        where = _range_words(s, frontier)
        verb = "is the best sampler" if len(s.groups) == 1 else "take turns or cannot be told apart"
        certain = study.has_uncertainty and s.contested
        if len(s.groups) > 1:
            found.append(Finding(f"{where}, {names} {verb}{at}.", word="undecided"))
        else:
            p = s.probability if certain else math.nan
            found.append(Finding(f"{where}, {names} {verb}{at}.", p))
    return found


def guidance_findings(best: Sequence[BestGuidance]) -> list[Finding]:
    """Whether one guidance rate serves everywhere, and whether the sweep was wide enough."""
    if not best:
        return []
    rates = sorted({r for b in best for r in b.rates})
    serves = {r: sum(r in b.tied for b in best) for r in rates}
    rate = max(rates, key=lambda r: serves[r])
    share = serves[rate] / len(best)
    ruled_out = 1 - sum(serves.values()) / sum(len(b.rates) for b in best)
    if ruled_out < 0.2:
        head = "These data hardly tell guidance rates apart"
    elif share >= LIKELY:
        head = "One guidance rate nearly serves all"
    else:
        head = "The best guidance rate depends on width, sampler or steps"
    text = (
        f"{head}: the rate that serves most often, {rate:g}, is the best or cannot be told from it "
        f"in {serves[rate]} of {len(best)} combinations of these."
    )
    found = [Finding(text)]
    few, many = min(b.point.steps for b in best), max(b.point.steps for b in best)
    if few < many:
        at = {
            n: float(np.median([b.point.guidance for b in best if b.point.steps == n]))
            for n in (few, many)
        }
        found.append(
            Finding(
                f"The median best rate is {at[few]:g} at {step_words(few)} and {at[many]:g} "
                f"at {many}."
            )
        )
    edge = sum(b.at_edge for b in best)
    if edge:
        found.append(
            Finding(
                f"In {edge} of {len(best)} the best rate is the lowest or highest one tried, "
                "so the true best may lie outside the sweep."
            )
        )
    return found


def training_findings(study: Study, law: PowerLaw) -> list[Finding]:
    """The power law of quality in training compute, or why there is none."""
    if not law.supported:
        return [Finding(f"No power law of quality in training compute: {law.reason}.")]
    return [Finding(f"{study.info.label} {_law_text(law, 'evaluations')}.")]


def _law_text(law: PowerLaw, of: str) -> str:
    low, high = law.interval
    floor = f" above a floor of {digits(law.c)}" if law.has_floor else ""
    verb = "improves" if law.improvement > 0 else "worsens"
    percent = 100 * law.r_squared
    share = "more than 99 %" if percent > 99 else f"{percent:.0f} %"
    return (
        f"{verb} with training compute as a power law{floor}: exponent {law.improvement:.2f}, 95 % "
        f"interval [{low:.2f}, {high:.2f}], explaining {share} of the variance "
        f"of {law.num_points} {of}"
    )


def loss_findings(law: PowerLaw) -> list[Finding]:
    """The power law of the held-out loss in training compute."""
    if not law.supported:
        return [Finding(f"No power law of the held-out loss in training compute: {law.reason}.")]
    return [Finding(f"The held-out loss {_law_text(law, 'evaluations during training')}.")]


def stability_findings(stability: Stability | None) -> list[Finding]:
    """Whether other seeds name the same winners."""
    if stability is None:
        return [
            Finding(
                "Every point was measured with one seed (or different ones), so the winner's "
                "stability over seeds is not known; certainty rests on the metric's intervals."
            )
        ]
    return [
        Finding(
            f"All {len(stability.seeds)} seeds name the same winning width over "
            f"{stability.agreement:.0%} of the (logarithmic) cost axis."
        )
    ]
