import importlib

import numpy as np
import pytest

from ldm_scaling import metrics

module = importlib.import_module("ldm_scaling.metrics.kernel_distance")


def _direct(x, y):
    """The definition, pair by pair (arXiv:1801.01401, eq. 4)."""

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    across = sum(k(a, b) for a in x for b in y)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)


@pytest.fixture(params=[1024, 4], ids=["one block", "many blocks"])
def _block_size(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", request.param)


@pytest.mark.usefixtures("_block_size")
def test_equals_the_sum_over_pairs_and_the_jackknife_leaving_one_out():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 5)), rng.normal(size=(14, 5)) + 0.5
    result = metrics.kernel_distance(x, y)
    np.testing.assert_allclose(result.value, _direct(x, y), rtol=1e-12)
    sums = metrics.kernel_row_sums(y)
    assert metrics.kernel_distance(x, y, sums) == result
    without_x = np.array([_direct(np.delete(x, i, 0), y) for i in range(11)])
    without_y = np.array([_direct(x, np.delete(y, j, 0)) for j in range(14)])
    np.testing.assert_allclose(
        result.variance, 10 * without_x.var() + 13 * without_y.var(), rtol=1e-9
    )


@pytest.mark.usefixtures("_block_size")
def test_resamples_differ_as_the_definition_says():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(10, 4)).astype(np.float32)
    counts = metrics.resampling_counts(9, 5, seed=2)
    ours = metrics.kernel_distance_resampled(x, y, counts)
    kxx, kxy = metrics.polynomial_kernel(x, x), metrics.polynomial_kernel(x, y)
    for row, value in zip(counts, ours, strict=True):
        pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
        within = sum(row[i] * row[j] * kxx[i, j] for i, j in pairs)
        within /= sum(row[i] * row[j] for i, j in pairs)
        np.testing.assert_allclose(value, within - 2 * row @ kxy.mean(1) / 9, rtol=1e-10)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 1.0, 2.5), (1.0, 0.8, 1.4)])
def test_is_unbiased_and_its_variance_is_that_of_repeated_experiments(shift, low, high):
    rng = np.random.default_rng(2)
    results = [
        metrics.kernel_distance(rng.normal(size=(30, 6)) + shift, rng.normal(size=(50, 6)))
        for _ in range(200)
    ]
    values = np.array([r.value for r in results])
    large = metrics.kernel_distance(
        rng.normal(size=(4000, 6)) + shift, rng.normal(size=(4000, 6))
    ).value
    assert abs(values.mean() - large) < 4 * values.std() / np.sqrt(200)
    # The jackknife is conservative (by two at most) where both sets are of one kind.
    assert low < np.mean([r.variance for r in results]) / values.var() < high


def test_interval_covers_what_many_images_would_say():
    rng = np.random.default_rng(3)
    reference = rng.normal(size=(60, 6))
    draws = rng.normal(size=(60, 40, 6)) + 0.2
    large = metrics.kernel_distance(draws.reshape(-1, 6), reference).value
    covered = []
    for seed, x in enumerate(draws):
        replicates = metrics.kernel_distance_resampled(
            x, reference, metrics.resampling_counts(40, 200, seed)
        )
        low, high = metrics.interval(metrics.kernel_distance(x, reference).value, replicates)
        covered.append(low <= large <= high)
    assert 0.8 <= np.mean(covered) <= 1


def test_separates_what_differs():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 200, 8))
    near, far = metrics.kernel_distance(x, y), metrics.kernel_distance(x, y + 0.5)
    assert abs(near.value) < 3 * near.variance**0.5 < far.value


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="reference: 2 rows"):
        metrics.kernel_distance(np.ones((5, 3)), np.ones((2, 3)))


def test_kid_of_one_subset_that_is_the_whole_set_is_the_kernel_distance_in_any_order():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 40, 5))
    whole = metrics.kernel_distance(x, y).value
    found = metrics.kid(x, rng.permutation(y), subsets=2, subset_size=40)
    np.testing.assert_allclose(found, (whole, 0.0), rtol=1e-12, atol=1e-14)


def test_kid_of_subsets_estimates_the_kernel_distance():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(400, 6)) + 0.3, rng.normal(size=(400, 6))
    found = metrics.kid(x, y, subsets=200, subset_size=50)
    error = found.std / np.sqrt(200)
    assert found.mean == pytest.approx(metrics.kernel_distance(x, y).value, abs=4 * error)


def test_kid_refuses_subsets_larger_than_the_set():
    with pytest.raises(ValueError, match="subset_size=1000: reference has only 30 images"):
        metrics.kid(np.ones((1000, 3)), np.ones((30, 3)))
    with pytest.raises(ValueError, match="subsets=0, subset_size=3"):
        metrics.kid(np.ones((5, 3)), np.ones((5, 3)), subsets=0, subset_size=3)
