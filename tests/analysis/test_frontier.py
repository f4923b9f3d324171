import math

import numpy as np
import pytest

from ldm_scaling.analysis.claims import compare_pairs, paper_claims
from ldm_scaling.analysis.frontier import segments, trace, win_probability
from ldm_scaling.analysis.guidance_optimum import best_guidance
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


def test_frontier_of_two_hand_made_models():
    """Width 16 is best until 48 can afford 4 steps; costs 0.13 and 1 a step."""
    table = {(16, 2): 5.0, (16, 8): 3.0, (48, 2): 4.0, (48, 4): 1.0}
    records = [record(lambda w, n, *_: table[w, n], w, n, sigma=1e-3) for w, n in table]
    frontier = trace(Study.from_records(records))
    np.testing.assert_allclose(frontier.costs, [0.26, 1.04, 2.0, 4.0])
    np.testing.assert_allclose(frontier.score, [[5, 3, 3, 3], [np.inf, np.inf, 4, 1]])
    first, last = segments(frontier)
    assert (first.low, first.high, first.group) == (0.26, 4.0, 16)
    assert first.setting.steps == 8
    assert first.runner_up == 48
    assert (last.low, last.high, last.group) == (4.0, math.inf, 48)
    assert first.probability == last.probability == 1.0


def test_higher_is_better_metrics_are_traced_upwards():
    study = Study.from_records(study_records(), metric="alignment_lite0_minilm")
    frontier = trace(study)
    best = max(p.value for p in study.points)
    assert -frontier.score.min() == best


def test_win_probability_of_two_normals():
    """P(a < b) of two normals is known in closed form."""
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((40000, 2, 1)) + np.array([0.0, 1.0])[:, None]
    exact = 0.5 * math.erfc(-1 / math.sqrt(2) / math.sqrt(2))
    assert win_probability(draws)[0, 0] == pytest.approx(exact, abs=0.01)


def test_ties_are_shared():
    assert win_probability(np.zeros((3, 4, 2))).tolist() == [[0.25, 0.25]] * 4


def test_unaffordable_groups_never_win():
    draws = np.array([[[np.inf, 1.0], [2.0, 2.0]]])
    assert win_probability(draws).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_probabilities_are_calibrated_when_two_widths_are_equal():
    """Wrong certainty at 95 % must be rare: here at most 10 % by chance, both sides counted."""
    certain, mean = 0, []
    for draw in range(120):
        records = study_records(
            all_equal, sigma=0.05, draw=draw, widths=(16, 24), steps=(8,), guidance=(4.0,)
        )
        p = trace(Study.from_records(records), draws=500).probability[:, -1]
        certain += p.max() > 0.95
        mean.append(p[0])
    assert np.mean(mean) == pytest.approx(0.5, abs=0.08)
    assert certain / 120 < 0.17  # 10 % expected, three standard errors allowed


def test_trying_more_settings_does_not_buy_a_win():
    """One width tried 16 times, the other once, equal in truth: the corrected draws stay fair."""
    won, naive = [], []
    for draw in range(60):
        rng = np.random.default_rng(draw)
        records = [record(all_equal, 16, 50, 4.0, sigma=0.05, rng=rng)]
        records += [
            record(all_equal, 24, n, 4.0, sigma=0.05, rng=rng) for n in range(2, 34, 2)
        ]  # fmt: skip
        frontier = trace(Study.from_records(records), draws=400)
        won.append(frontier.probability[1, -1])
        optimism = frontier.draws[:, 1, -1].mean() - frontier.score[1, -1]
        uncorrected = frontier.draws[:, :, -1] - np.array([0.0, 2 * optimism])
        naive.append((uncorrected[:, 1] < uncorrected[:, 0]).mean())
    assert np.mean(won) < 0.85 < np.mean(naive)


@pytest.mark.parametrize(
    ("truth", "sigma", "small", "large"),
    [
        (smaller_first, 0.01, "holds", "holds"),
        (larger_first, 0.01, "does not hold", "holds"),
        (lambda w, n, g, s: w / 50, 0.01, "holds", "does not hold"),
    ],
)
def test_claims_are_judged_by_the_data(truth, sigma, small, large):
    verdicts = [c.verdict for c in paper_claims(trace(study_of(truth, sigma=sigma)))]
    assert verdicts == [small, large]


def test_claims_are_undecided_when_all_models_are_equal():
    probabilities = np.array(
        [
            [c.probability for c in paper_claims(trace(study_of(all_equal, sigma=0.1, draw=d)))]
            for d in range(20)
        ]
    )
    assert np.abs(probabilities.mean(axis=0) - 0.5).max() < 0.25
    assert ((probabilities > 0.05) & (probabilities < 0.95)).mean() > 0.7


def test_a_single_width_cannot_be_compared():
    frontier = trace(study_of(widths=(24,)))
    assert [c.verdict for c in paper_claims(frontier)] == ["not testable"] * 2
    assert [s.contested for s in segments(frontier)] == [False]


def test_without_uncertainty_nothing_is_certain():
    study = study_of(interval=False)
    assert not study.has_uncertainty
    claims = paper_claims(trace(study), certain=study.has_uncertainty)
    assert [c.verdict for c in claims] == ["not testable"] * 2
    assert all(math.isnan(b.probability) for b in best_guidance(study))


def test_crossover_cost_of_a_pair():
    """The true crossing of the noiseless curves lies in the interval found."""
    study = study_of(smaller_first, sigma=0.005)
    pair = next(p for p in compare_pairs(trace(study)) if (p.smaller, p.larger) == (16, 48))
    exact = trace(study_of(smaller_first, sigma=1e-9))
    better = exact.score[3] < exact.score[0]
    crossing = exact.costs[np.flatnonzero(~better)[-1] + 1]
    assert pair.overtakes[0] <= crossing <= pair.overtakes[2]
    assert pair.larger_at_large == 1.0
    assert pair.smaller_at_small > 0.9


def test_best_guidance_and_its_ties():
    truth = {1.5: 1.0, 3.0: 0.50, 5.0: 0.51, 8.0: 2.0}
    study = study_of(lambda w, n, g, s: truth[g], sigma=0.02, widths=(16,), steps=(8,))
    (best,) = best_guidance(study)
    assert best.point.guidance in (3.0, 5.0)
    assert best.tied == (3.0, 5.0)
    assert not best.at_edge
    assert 0.4 < best.probability < 1.0


def test_best_guidance_at_the_edge_is_marked():
    (best,) = best_guidance(study_of(lambda w, n, g, s: g, widths=(16,), steps=(8,)))
    assert best.point.guidance == 1.5
    assert best.at_edge
    assert best.probability == 1.0


def test_stability_over_seeds():
    clear = study_of(smaller_first, sigma=0.001, seeds=(0, 1, 2))
    stability = winner_stability(clear, trace(clear))
    assert stability.agreement > 0.9
    assert stability.seeds == (0, 1, 2)
    noisy = study_of(all_equal, sigma=0.1, seeds=(0, 1, 2))
    assert winner_stability(noisy, trace(noisy)).agreement < 0.5
    assert winner_stability(study_of(), trace(study_of())) is None
