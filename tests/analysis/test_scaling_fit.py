import math

import numpy as np
import pytest

from ldm_scaling.analysis.ranking import METRICS
from ldm_scaling.analysis.scaling_fit import fit_power_law, training_compute, training_series
from ldm_scaling.analysis.study import Study
from tests.analysis.synthetic_records import record, smaller_first, study_records

LOWER, HIGHER = METRICS["kd_lite0"], METRICS["alignment_lite0_minilm"]
COMPUTE = np.geomspace(1e12, 1e15, 16)


def law(a, b, c=0.0):
    return c + a * (COMPUTE / 1e13) ** -b


def test_recovers_a_power_law():
    fit = fit_power_law(COMPUTE, law(3.0, 0.25), np.full(16, 0.01), LOWER)
    assert fit.supported
    assert not fit.has_floor
    assert fit.b == pytest.approx(0.25, abs=1e-3) == fit.improvement
    np.testing.assert_allclose(fit(COMPUTE), law(3.0, 0.25), rtol=1e-3)


def test_recovers_a_floor():
    fit = fit_power_law(COMPUTE, law(3.0, 0.5, 2.0), np.full(16, 0.01), LOWER)
    assert fit.has_floor
    assert fit.c == pytest.approx(2.0, rel=1e-3)
    assert fit.b == pytest.approx(0.5, rel=1e-3)


def test_a_floor_below_zero_is_no_finding():
    """Nearly straight against log(compute): best fitted by a tiny exponent and a vast floor."""
    values = 6.0 - 0.7 * np.log(COMPUTE / 1e12)
    fit = fit_power_law(COMPUTE, values, np.full(16, 0.1), LOWER)
    assert not fit.has_floor
    assert fit.improvement > 0.1
    rising = fit_power_law(COMPUTE, 0.2 - values / 50, np.full(16, 0.01), HIGHER)
    assert not rising.has_floor


def test_a_saturating_metric_that_should_rise():
    fit = fit_power_law(COMPUTE, law(-0.2, 0.5, 0.4), np.full(16, 0.001), HIGHER)
    assert fit.supported
    assert fit.c == pytest.approx(0.4, rel=1e-3)
    assert fit.improvement == pytest.approx(0.5, rel=1e-2)
    assert fit.interval[0] > 0


def test_worsening_has_a_negative_exponent():
    fit = fit_power_law(COMPUTE, law(1.0, -0.2), np.full(16, 0.01), LOWER)
    assert fit.improvement == pytest.approx(-0.2, abs=1e-2)
    assert fit.interval[1] < 0


def test_interval_covers_the_truth():
    covered = 0
    for draw in range(40):
        noise = 0.05 * np.random.default_rng(draw).standard_normal(16)
        fit = fit_power_law(COMPUTE, law(3.0, 0.25) + noise, np.full(16, 0.05), LOWER, draws=60)
        covered += fit.interval[0] <= 0.25 <= fit.interval[1]
    assert covered / 40 > 0.8


@pytest.mark.parametrize(
    ("compute", "values", "reason"),
    [
        (COMPUTE[:3], [3.0, 2.0, 1.0], "4 are needed"),
        ([1e12, 1.1e12, 1.2e12, 1.3e12], [4.0, 3.0, 2.0, 1.0], "only a factor of 1.3"),
        (COMPUTE, np.random.default_rng(0).standard_normal(16) + 5, "explains only"),
        ([], [], "4 are needed"),
    ],
)
def test_says_why_there_is_no_fit(compute, values, reason):
    fit = fit_power_law(np.array(compute), np.array(values), np.full(len(values), 0.1), LOWER)
    assert not fit.supported
    assert reason in fit.reason


def test_unknown_standard_errors_weigh_equally():
    fit = fit_power_law(COMPUTE, law(3.0, 0.25), np.full(16, math.nan), LOWER)
    assert fit.b == pytest.approx(0.25, abs=1e-3)


def test_band_contains_the_fit():
    noise = 0.05 * np.random.default_rng(0).standard_normal(16)
    fit = fit_power_law(COMPUTE, law(3.0, 0.25) + noise, np.full(16, 0.05), LOWER)
    low, high = fit.band(COMPUTE)
    assert (low <= fit(COMPUTE)).mean() > 0.9
    assert (fit(COMPUTE) <= high).mean() > 0.9


def test_series_is_the_setting_evaluated_along_training():
    study = Study.from_records(study_records(training=(1000, 5000)))
    series = training_series(study.trained)
    assert len(series) == 12
    assert len({(p.sampler, p.steps, p.guidance) for p in series}) == 1
    assert (training_compute(series) > 0).all()


def test_training_compute_must_be_known():
    point = Study.from_records([record(smaller_first, 16, 8)]).points[0]
    point.costs["training_flops"] = 0.0
    with pytest.raises(ValueError, match="training_flops"):
        training_compute([point])
