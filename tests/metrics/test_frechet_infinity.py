import numpy as np
import pytest

from ldm_scaling import metrics

SIZE = 12


@pytest.fixture(scope="module")
def standard():
    return metrics.Gaussian(np.zeros(SIZE), np.eye(SIZE))


def test_removes_the_bias_of_few_images(standard):
    """Means differ by 0.5 in every feature and covariances not at all: the distance is SIZE / 4."""
    values, plain = [], []
    for seed in range(20):
        features = np.random.default_rng(seed).normal(size=(400, SIZE)) + 0.5
        found = metrics.frechet_infinity(features, standard, seed=seed)
        values.append(found.value)
        plain.append(metrics.Gaussian.from_features(features).frechet(standard))
        assert found.slope > 0
        assert found.distances[-1] == pytest.approx(plain[-1], rel=1e-12)
        assert (found.counts[0], found.counts[-1], len(found.counts)) == (40, 400, 15)
    errors = np.mean(plain) - SIZE / 4, np.mean(values) - SIZE / 4
    assert abs(errors[1]) < errors[0] / 2
    assert abs(errors[1]) < 3 * np.std(values) / np.sqrt(20)


def test_few_images_are_warned_of_and_too_few_refused(standard):
    features = np.random.default_rng(0).normal(size=(60, SIZE))
    with pytest.warns(UserWarning, match="smallest subset: 6 images for 12-d"):
        metrics.frechet_infinity(features, standard)
    with pytest.raises(ValueError, match=r"smallest=60, points=15: .* the 60 images"):
        metrics.frechet_infinity(features, standard, smallest=60)
    with pytest.raises(ValueError, match="points=1"):
        metrics.frechet_infinity(features, standard, smallest=30, points=1)
