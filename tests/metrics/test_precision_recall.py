import importlib

import numpy as np
import pytest

from ldm_scaling import metrics

module = importlib.import_module("ldm_scaling.metrics.precision_recall")


def _circle(rng, count, low=0.0, high=2 * np.pi):
    angle = rng.uniform(low, high, size=count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_radii_and_membership_by_hand(monkeypatch):
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    for block in (1024, 3):
        monkeypatch.setattr(module, "_BLOCK", block)
        np.testing.assert_allclose(metrics.neighbour_radii(line, 1), [1, 1, 4, 16])
        np.testing.assert_allclose(metrics.neighbour_radii(line, 3), [49, 36, 16, 49])
        inside = metrics.within_manifold(
            np.array([[-1.5], [-1.0], [5.5], [11.0], [11.5]]), line, np.array([1.0, 1, 4, 16])
        )
        np.testing.assert_array_equal(inside, [False, True, True, True, False])


def test_equal_sets_score_one_and_distant_sets_zero():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 5))
    assert metrics.precision_recall(x, x)[:2] == (1.0, 1.0)
    assert metrics.precision_recall(x + 100, x)[:2] == (0.0, 0.0)


def test_half_of_a_manifold_has_full_precision_and_half_recall():
    rng = np.random.default_rng(1)
    reference, half = _circle(rng, 1000), _circle(rng, 1000, 0, np.pi)
    result = metrics.precision_recall(half, reference)
    assert result.precision > 0.97
    assert result.recall == pytest.approx(0.5, abs=0.05)
    swapped = metrics.precision_recall(reference, half)
    assert swapped.precision == pytest.approx(0.5, abs=0.05)
    assert swapped.recall > 0.97


def test_a_second_manifold_costs_its_share_of_precision():
    rng = np.random.default_rng(2)
    reference = _circle(rng, 500)
    stray = np.concatenate([_circle(rng, 300), 5 * _circle(rng, 100)])
    result = metrics.precision_recall(
        stray, reference, reference_radii=metrics.neighbour_radii(reference)
    )
    assert result.precision == pytest.approx(0.75, abs=0.03)
    assert result.generated_inside[300:].sum() == 0
    assert result.reference_inside.mean() == result.recall


def test_k_must_leave_a_neighbour():
    with pytest.raises(ValueError, match=r"k=3: .* which is 3"):
        metrics.neighbour_radii(np.ones((3, 2)))


@pytest.mark.parametrize("block", [1024, 7])
def test_equal_sets_have_density_and_coverage_one_in_any_order(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 4))
    assert metrics.density_coverage(rng.permutation(x), x) == pytest.approx((1.0, 1.0), abs=0.01)
    assert metrics.density_coverage(x + 100, x) == (0.0, 0.0)


def test_density_and_coverage_by_hand():
    real = np.array([[0.0], [1.0], [3.0], [7.0]])  # radii at k=1: 1, 1, 2, 4
    generated = np.array([[0.5], [0.6], [4.0], [100.0]])
    found = metrics.density_coverage(
        generated, real, k=1, reference_radii=metrics.neighbour_radii(real, 1)
    )
    # 0.5 and 0.6 lie in two balls each, 4 in those of 3 and 7, 100 in none.
    assert found == (6 / 4, 1.0)


def test_one_stray_image_misleads_recall_but_not_coverage():
    """A distant generated image widens the generated manifold, not the real balls."""
    rng = np.random.default_rng(4)
    real, generated = _circle(rng, 200), _circle(rng, 200, 0, np.pi)
    stray = np.concatenate([generated, [[0.0, -30.0]]])
    assert metrics.precision_recall(stray, real).recall > 0.9
    assert metrics.density_coverage(stray, real).coverage < 0.6
