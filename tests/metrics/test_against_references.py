"""Scores of features: what pytorch-fid, clean-fid, torch-fidelity and prdc make of them."""

import numpy as np
import pytest

from ldm_scaling import metrics
from tests.golden_makers._seeded import feature_sets


@pytest.fixture(scope="module")
def expected(goldens):
    with np.load(goldens / "metrics_of_features.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def sets():
    return feature_sets()


def test_frechet_distance(sets, expected):
    found = metrics.frechet_from_features(*sets[:2])
    for name in ("pytorch_fid", "clean_fid", "torch_fidelity"):
        assert found == pytest.approx(expected[f"fid_{name}"], rel=1e-9)


def test_kid_is_of_the_same_subsets(sets, expected):
    found = metrics.kid(*sets[:2], subsets=30, subset_size=100)
    np.testing.assert_allclose(found, expected["kid"], rtol=1e-4)  # theirs is float32


def test_inception_score_is_of_the_same_splits(sets, expected):
    logits = sets[2]
    np.testing.assert_allclose(
        metrics.inception_score(logits), expected["inception_score"], rtol=1e-9
    )
    np.testing.assert_allclose(
        metrics.inception_score(logits, splits=7, shuffle=False),
        expected["inception_score_in_order"],
        rtol=1e-9,
    )


def test_precision_and_recall(sets, expected):
    found = metrics.precision_recall(*sets[:2])[:2]
    np.testing.assert_allclose(found, expected["precision_recall"], rtol=1e-6)
    # prdc's balls are open, which matters only where two distances are equal.
    found = metrics.precision_recall(*sets[:2], k=5)[:2]
    np.testing.assert_allclose(found, expected["prdc"][:2], rtol=1e-6)


def test_density_and_coverage(sets, expected):
    found = metrics.density_coverage(*sets[:2])
    np.testing.assert_allclose(found, expected["prdc"][2:], rtol=1e-6)
