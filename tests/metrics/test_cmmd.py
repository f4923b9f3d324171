import importlib

import numpy as np
import pytest

from ldm_scaling import metrics

module = importlib.import_module("ldm_scaling.metrics.cmmd")


def _unit(rng, count, size=16):
    vectors = rng.normal(size=(count, size)) + 0.3
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _direct(x, y):
    """The definition, pair by pair, each with itself included."""

    def mean(a, b):
        return np.mean([np.exp(-np.sum((p - q) ** 2) / (2 * 10**2)) for p in a for q in b])

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.mark.parametrize("block", [1024, 4])
def test_equals_the_mean_over_pairs(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(0)
    x, y = _unit(rng, 9), -_unit(rng, 13)
    expected = _direct(x, y)
    assert metrics.cmmd(x, y) == pytest.approx(expected, rel=1e-9)
    assert metrics.cmmd(y, x) == pytest.approx(expected, rel=1e-9)
    # Lengths say nothing: the published embeddings have none.
    assert metrics.cmmd((3 * x).astype(np.float32), y) == pytest.approx(expected, rel=1e-5)


def test_is_zero_for_equal_sets_in_any_order_and_that_of_two_points_is_known():
    rng = np.random.default_rng(1)
    x = _unit(rng, 50)
    assert metrics.cmmd(x, rng.permutation(x)) == pytest.approx(0, abs=1e-10)
    apart = metrics.cmmd(np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]]))
    assert apart == pytest.approx(2000 * (1 - np.exp(-4 / 200)), rel=1e-12)
