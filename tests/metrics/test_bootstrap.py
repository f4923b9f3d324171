import numpy as np
import pytest
import scipy.stats

from ldm_scaling import metrics


def test_interval_of_a_mean_equals_scipys():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=80)
    counts = metrics.resampling_counts(80, 4000, seed=1)
    low, high = metrics.interval(values.mean(), metrics.resampled_means(values, counts))
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose((low, high), theirs, atol=0.02)


def test_counts_are_reproducible_and_complete():
    counts = metrics.resampling_counts(33, 50, seed=3)
    assert (counts.sum(1) == 33).all()
    np.testing.assert_array_equal(counts, metrics.resampling_counts(33, 50, seed=3))
    assert not np.array_equal(counts, metrics.resampling_counts(33, 50, seed=4))


def test_interval_contains_the_estimate_where_resamples_are_biased():
    replicates = np.random.default_rng(0).normal(10.0, 1.0, size=1000)
    low, high = metrics.interval(3.0, replicates, level=0.9)
    assert low == pytest.approx(3 - 1.645, abs=0.15)
    assert high == pytest.approx(3 + 1.645, abs=0.15)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="count=1"):
        metrics.resampling_counts(1, 5)
    with pytest.raises(ValueError, match="resamples=0"):
        metrics.resampling_counts(5, 0)
    with pytest.raises(ValueError, match=r"level=95"):
        metrics.interval(0.0, np.ones(3), level=95.0)
