import numpy as np
import pytest

from ldm_scaling import metrics


def _pairs(rng, count, noise):
    """Captions, and features that are a fixed linear image of them, plus noise and an offset."""
    captions = rng.normal(size=(count, 6)) + 3.0
    mixing = np.random.default_rng(99).normal(size=(6, 20))
    return captions @ mixing + noise * rng.normal(size=(count, 20)) + 5.0, captions


def test_recovers_a_linear_relation():
    rng = np.random.default_rng(0)
    features, captions = _pairs(rng, 300, noise=0.01)
    alignment = metrics.fit_alignment(features, captions, ridge=1e-6)
    unseen_features, unseen_captions = _pairs(rng, 50, noise=0.01)
    scores = alignment.scores(unseen_features, unseen_captions)
    assert scores.min() > 0.99
    np.testing.assert_allclose(
        scores, np.diagonal(alignment.cosines(unseen_features, unseen_captions)), rtol=1e-12
    )
    calibration = metrics.calibrate(alignment, unseen_features, unseen_captions)
    assert calibration.top1 == 1.0
    assert calibration.ranking == 1.0
    assert calibration.count == 50
    # Centred, so captions that have nothing in common do not look alike.
    assert abs(calibration.mismatched) < 0.1 < 0.99 < calibration.matched


def test_calibration_tells_when_the_score_is_worthless():
    rng = np.random.default_rng(1)
    features, captions = rng.normal(size=(400, 20)), rng.normal(size=(400, 6))
    alignment = metrics.fit_alignment(features[:200], captions[:200])
    calibration = metrics.calibrate(alignment, features[200:], captions[200:])
    assert calibration.ranking == pytest.approx(0.5, abs=0.06)
    assert abs(calibration.matched - calibration.mismatched) < 0.1


def test_equal_captions_are_no_mistake():
    rng = np.random.default_rng(2)
    features, captions = _pairs(rng, 100, noise=0.0)
    alignment = metrics.fit_alignment(features, captions, ridge=1e-6)
    twice = np.concatenate([np.arange(10), np.arange(10)])
    calibration = metrics.calibrate(alignment, features[twice], captions[twice])
    assert calibration.top1 == 1.0
    assert calibration.ranking == 1.0


def test_bad_fits_are_refused():
    with pytest.raises(ValueError, match="ridge=0"):
        metrics.fit_alignment(np.ones((4, 2)), np.ones((4, 2)), ridge=0.0)
    with pytest.raises(ValueError, match="all rows are equal"):
        metrics.fit_alignment(np.ones((4, 2)), np.ones((4, 2)))
    alignment = metrics.fit_alignment(np.eye(4), np.eye(4))
    with pytest.raises(ValueError, match="1 rows"):
        metrics.calibrate(alignment, np.ones((1, 4)), np.ones((1, 4)))
