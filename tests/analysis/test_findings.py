import math

import pytest

from ldm_scaling.analysis.claims import paper_claims
from ldm_scaling.analysis.cost import count, digits, reference_width, si
from ldm_scaling.analysis.findings import (
    Finding,
    claims_by_sampler,
    frontier_findings,
    guidance_findings,
    probability_words,
    sampler_findings,
    stability_findings,
)
from ldm_scaling.analysis.frontier import trace
from ldm_scaling.analysis.guidance_optimum import best_guidance, fair_points
from ldm_scaling.analysis.stability import winner_stability
from ldm_scaling.analysis.study import Study
from tests.analysis.synthetic_records import (
    all_equal,
    larger_first,
    record,
    smaller_first,
    study_records,
)


def study_of(*args, **kwargs):
    return Study.from_records(study_records(*args, **kwargs))


def test_answer_names_width_setting_and_certainty():
    study = study_of(smaller_first, sigma=0.002)
    first, *_, last = frontier_findings(study, trace(study))
    assert first.text.startswith("Up to a cost of")
    assert "width 16 is best" in first.text
    assert "steps of DDIM at guidance" in first.text
    assert first.word == "sure"
    assert "to the end of the sweep (50), width 48 is best" in last.text


def test_answer_admits_a_tie():
    study = study_of(all_equal, sigma=0.1)
    found = frontier_findings(study, trace(study))
    assert any("no single width is the best" in f.text for f in found)
    assert not any(f.word == "sure" for f in found if "width 48 is best" in f.text)


def test_answer_without_a_rival_claims_no_win():
    study = study_of(widths=(24,))
    (only,) = frontier_findings(study, trace(study))
    assert "only width 24 is affordable" in only.text
    assert only.word == ""


def test_answer_without_intervals_gives_no_probability():
    study = study_of(interval=False)
    assert all(math.isnan(f.probability) for f in frontier_findings(study, trace(study)))


@pytest.mark.parametrize(
    ("truth", "sigma", "opening"),
    [
        (smaller_first, 0.005, "The sampler does not change"),
        (larger_first, 0.005, "The sampler does not change"),
        (all_equal, 0.2, "Whether the sampler changes which width wins at small cost is open"),
        (
            lambda w, n, g, s: smaller_first(w, n, g, s) if s == "ddim" else 50 / w,
            0.005,
            "The sampler changes",
        ),
    ],
)
def test_sampler_findings_follow_the_data(truth, sigma, opening):
    study = study_of(truth, sigma=sigma, samplers=("ddim", "ddpm"))
    assert sampler_findings(study, claims_by_sampler(study))[0].text.startswith(opening)


def test_samplers_are_compared_at_shared_settings():
    records = [
        r
        for r in study_records(samplers=("ddim", "ddpm"), guidance=(1.5, 3.0, 5.0))
        if r.point["sampler"] == "ddim" or (r.point["guidance"] == 3.0 and r.point["steps"] > 4)
    ]
    points, which = fair_points(Study.from_records(records))
    assert {p.guidance for p in points} == {3.0}
    assert min(p.steps for p in points) > 4
    assert which.endswith("steps, guidance 3")
    apart = [r for r in records if r.point["sampler"] == "ddpm" or r.point["guidance"] != 3.0]
    points, which = fair_points(Study.from_records(apart))
    assert (len({p.sampler for p in points}), which) == (2, "")


def test_guidance_findings_follow_the_data():
    one = study_of(all_equal, sigma=0.001)
    assert guidance_findings(best_guidance(one))[0].text.startswith("One guidance rate nearly")
    moving = study_of(lambda w, n, g, s: abs(g - (8.0 if n < 8 else 1.5)), sigma=0.01)
    found = guidance_findings(best_guidance(moving))
    assert found[0].text.startswith("The best guidance rate depends")
    assert "8 at 2 steps and 1.5 at 50" in found[1].text
    assert "In 24 of 24 the best rate is the lowest or highest" in found[2].text
    assert guidance_findings([]) == []


def test_stability_findings():
    study = study_of(sigma=0.001, seeds=(0, 1))
    assert "All 2 seeds" in stability_findings(winner_stability(study, trace(study)))[0].text
    assert "not known" in stability_findings(None)[0].text


def test_words_for_probabilities():
    assert Finding("", 0.95).word == "sure"
    assert Finding("", 0.8).word == "likely"
    assert Finding("", 0.5).word == "undecided"
    assert Finding("").word == ""
    assert Finding("", 0.5, "holds").word == "holds"
    assert probability_words(1.0) == "P > 0.99"
    assert probability_words(0.0) == "P < 0.01"
    assert probability_words(0.931) == "P = 0.93"
    assert probability_words(math.nan) == "P unknown"


def test_numbers_in_print():
    assert digits(0.26) == "0.26"
    assert digits(12345) == "12300"
    assert digits(-0.5) == "−0.5"
    assert digits(1e-7) == "1.00e−7"
    assert digits(math.inf) == "∞"
    assert digits(0.0) == "0"
    assert si(5.031e9, "FLOPs") == "5.03 GFLOPs"
    assert si(12.0) == "12"
    assert count(38.8e6) == "39M"
    assert count(4.9e9) == "5B"


def test_reference_width():
    assert reference_width(study_of()) == 48
    assert reference_width(study_of(widths=(16, 24))) is None


def test_claims_need_no_particular_family():
    claims = paper_claims(trace(study_of(smaller_first, widths=(16, 48))))
    assert [c.verdict for c in claims] == ["holds", "holds"]


def test_a_win_that_becomes_unsure_is_cut_in_two():
    """Width 16 is far ahead until 48 can afford a step count at which both are equal."""
    quality = {(16, 2): 1.0, (16, 8): 1.0, (48, 2): 9.0, (48, 8): 1.0}
    records = [record(lambda w, n, *_: quality[w, n], w, n, sigma=0.1) for w, n in quality]
    study = Study.from_records(records)
    first, last = frontier_findings(study, trace(study))
    assert first.text.startswith("Up to a cost of 8, width 16 is best")
    assert first.word == "sure"
    assert "At the largest cost of the sweep (8), no single width" in last.text
    assert "16 and 48" in last.text


def test_noise_is_not_taken_for_a_rate_that_serves_all():
    study = study_of(all_equal, sigma=0.5)
    assert guidance_findings(best_guidance(study))[0].text.startswith("These data hardly tell")
