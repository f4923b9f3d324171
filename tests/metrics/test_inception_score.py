import numpy as np
import pytest

from ldm_scaling import metrics


def test_sure_and_varied_images_score_the_number_of_classes():
    logits = 200.0 * np.eye(10)[np.arange(400) % 10]
    assert metrics.inception_score(logits, splits=2, shuffle=False) == pytest.approx((10.0, 0.0))


def test_images_that_are_all_alike_or_undecided_score_one():
    alike = np.tile(200.0 * np.eye(10)[:1], (50, 1))
    undecided = np.zeros((50, 10))
    for logits in (alike, undecided):
        assert metrics.inception_score(logits) == pytest.approx((1.0, 0.0))


def test_classes_that_no_image_shows_add_nothing():
    logits = np.random.default_rng(0).normal(size=(60, 5))
    with_unseen = np.concatenate([logits, np.full((60, 3), -2000.0)], axis=1)
    assert metrics.inception_score(with_unseen) == pytest.approx(metrics.inception_score(logits))


def test_order_does_not_matter_within_one_split():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(90, 7))
    whole = metrics.inception_score(logits, splits=1)
    assert metrics.inception_score(rng.permutation(logits), splits=1).mean == pytest.approx(
        whole.mean, rel=1e-12
    )


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match=r"splits=10: .* the 9 images"):
        metrics.inception_score(np.zeros((9, 3)))
