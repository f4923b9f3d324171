import numpy as np
import pytest
import scipy.linalg

from ldm_scaling import metrics


def _covariance(rng, size, rank=None):
    factor = rng.normal(size=(size, rank or 2 * size))
    return factor @ factor.T / factor.shape[1]


def _by_sqrtm(mu1, sigma1, mu2, sigma2):
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    traces = np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root).real
    return np.sum((mu1 - mu2) ** 2) + traces


@pytest.mark.parametrize("size", [1, 7, 64])
def test_equals_the_formula_with_scipys_matrix_square_root(size):
    rng = np.random.default_rng(size)
    mu1, mu2 = rng.normal(size=(2, size))
    sigma1, sigma2 = _covariance(rng, size), _covariance(rng, size)
    ours = metrics.frechet_distance(mu1, sigma1, mu2, sigma2)
    np.testing.assert_allclose(ours, _by_sqrtm(mu1, sigma1, mu2, sigma2), rtol=1e-9)
    np.testing.assert_allclose(ours, metrics.frechet_distance(mu2, sigma2, mu1, sigma1), rtol=1e-9)


def test_rank_deficient_covariances_with_a_shared_eigenbasis():
    # Commuting covariances have the closed form sum (sqrt(a) - sqrt(b))^2.
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(50, 50)))
    a, b = rng.uniform(0.1, 5, size=(2, 50))
    a[10:] = 0
    b[:5] = 0
    b[30:] = 0
    sigma1, sigma2 = (basis * a) @ basis.T, (basis * b) @ basis.T
    expected = np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    ours = metrics.frechet_distance(np.zeros(50), sigma1, np.zeros(50), sigma2)
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_rank_one_covariances():
    # S = u u^T, T = v v^T: tr((S T)^(1/2)) = |u . v|.
    rng = np.random.default_rng(1)
    u, v = rng.normal(size=(2, 300))
    ours = metrics.frechet_distance(np.zeros(300), np.outer(u, u), np.ones(300), np.outer(v, v))
    np.testing.assert_allclose(ours, 300 + u @ u + v @ v - 2 * abs(u @ v), rtol=1e-10)


def test_is_zero_for_equal_gaussians_of_any_rank():
    rng = np.random.default_rng(2)
    for rank in (3, 40, 80):
        sigma = _covariance(rng, 40, rank)
        assert metrics.frechet_distance(np.ones(40), sigma, np.ones(40), sigma) < 1e-10
    zero = np.zeros((40, 40))
    assert metrics.frechet_distance(np.ones(40), zero, np.zeros(40), zero) == pytest.approx(40)


def test_features_below_and_above_their_dimension_agree_with_the_moments():
    rng = np.random.default_rng(3)
    reference = rng.normal(size=(90, 30)) @ rng.normal(size=(30, 30))
    for count in (12, 100):
        features = (rng.normal(size=(count, 30)) + 0.3).astype(np.float32)
        expected = metrics.frechet_distance(
            features.mean(0, np.float64),
            np.cov(features, rowvar=False),
            reference.mean(0),
            np.cov(reference, rowvar=False),
        )
        if count < 30:
            with pytest.warns(UserWarning, match="12 images for 30-d features"):
                ours = metrics.frechet_from_features(features, reference)
        else:
            ours = metrics.frechet_from_features(features, reference)
        np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_statistics_do_not_depend_on_the_pieces():
    rng = np.random.default_rng(4)
    # A large offset: naive sums of squares would lose the covariance in float64's last digits.
    features = rng.normal(size=(101, 9)) + 1e6
    whole = metrics.FeatureStatistics.of(features)
    streamed = metrics.FeatureStatistics.of(features[:1])
    for start in range(1, 101, 13):
        streamed = streamed.update(features[start : start + 13])
    merged = metrics.FeatureStatistics.of(features[:60]).merge(
        metrics.FeatureStatistics.of(features[60:])
    )
    expected = np.cov(features - 1e6, rowvar=False)
    for statistics in (whole, streamed, merged):
        assert statistics.count == 101
        np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-14)
        np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("count", "size"), [(20, 8), (20, 40), (30, 25)])
def test_resampled_distances_equal_those_of_the_repeated_images(count, size):
    rng = np.random.default_rng(5)
    features = rng.normal(size=(count, size)).astype(np.float32)
    reference = metrics.Gaussian.from_features(rng.normal(size=(100, size)) * 2 + 1)
    counts = metrics.resampling_counts(count, 6, seed=7)
    expected = []
    for row in counts:
        drawn = np.repeat(features, row, axis=0).astype(np.float64)
        own = metrics.Gaussian.from_moments(drawn.mean(0), np.cov(drawn, rowvar=False))
        expected.append(own.frechet(reference))
    ours = metrics.frechet_resampled(features, reference, counts)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_bad_moments_are_refused():
    eye = np.eye(3)
    with pytest.raises(ValueError, match="NaN or Inf"):
        metrics.frechet_distance(np.zeros(3), eye * np.nan, np.zeros(3), eye)
    with pytest.raises(ValueError, match="smallest eigenvalue -1"):
        metrics.frechet_distance(np.zeros(3), -eye, np.zeros(3), eye)
    with pytest.raises(ValueError, match="1 rows"):
        metrics.Gaussian.from_features(np.ones((1, 3)))
    with pytest.raises(ValueError, match="at least 1 image"):
        metrics.FeatureStatistics.of(np.ones((0, 3)))
    with pytest.raises(ValueError, match="count=1"):
        _ = metrics.FeatureStatistics.of(np.ones((1, 3))).covariance


def test_statistics_know_their_gaussian_and_when_it_is_flat():
    rng = np.random.default_rng(6)
    features = rng.normal(size=(50, 5))
    statistics = metrics.FeatureStatistics.of(features)
    reference = metrics.Gaussian(np.zeros(5), np.eye(5))
    expected = metrics.Gaussian.from_features(features).frechet(reference)
    assert statistics.gaussian().frechet(reference) == pytest.approx(expected, rel=1e-12)
    with pytest.warns(UserWarning, match="statistics: 5 images for 5-d features"):
        flat = metrics.FeatureStatistics.of(features[:5]).gaussian()
    assert np.linalg.matrix_rank(flat.factor) == 4


def test_order_and_pieces_do_not_change_the_distance():
    rng = np.random.default_rng(7)
    features = rng.normal(size=(100, 6)).astype(np.float32)
    reference = metrics.Gaussian(np.zeros(6), np.eye(6))
    whole = metrics.FeatureStatistics.of(features).gaussian().frechet(reference)
    for size in (1, 7, 33):
        shuffled = rng.permutation(features)
        pieces = [shuffled[i : i + size] for i in range(0, 100, size)]
        statistics = metrics.FeatureStatistics.of(pieces[0])
        for piece in pieces[1:]:
            statistics = statistics.update(piece)
        assert statistics.gaussian().frechet(reference) == pytest.approx(whole, rel=1e-9)
