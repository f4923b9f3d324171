"""Inception's features and what is computed from them, in other batches, orders and sizes."""

import jax
import numpy as np
import pytest

from ldm_scaling import metrics
from ldm_scaling.checkpoint import names
from ldm_scaling.encoders import InceptionV3
from ldm_scaling.evaluation import Inception
from ldm_scaling.evaluation.resizing import RESIZES, resize, resize_one
from ldm_scaling.sharding import make_mesh
from tests.golden_makers._seeded import inception_state


@pytest.fixture(scope="module")
def params():
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    template = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    return names.from_file(template, inception_state(), "seeded")


@pytest.fixture(scope="module")
def alone(params):
    return Inception(params, "clean", batch_size=3)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (11, 40, 32, 3)).astype(np.uint8)


def test_scores_do_not_depend_on_batches_devices_or_order(params, alone, images):
    spread = Inception(params, "clean", batch_size=8, mesh=make_mesh())
    order = np.random.default_rng(1).permutation(8)
    first, others = alone(images[:8]), alone(images[8:])
    again = spread(images[:8][order])
    scale = np.abs(first).max()
    np.testing.assert_allclose(again, first[order], atol=2e-6 * scale)
    reference = metrics.Gaussian.from_features(others)
    distances = [metrics.Gaussian.from_features(x).frechet(reference) for x in (first, again)]
    assert distances[1] == pytest.approx(distances[0], rel=1e-6)
    kernel = [metrics.kernel_distance(x, others).value for x in (first, again)]
    assert kernel[1] == pytest.approx(kernel[0], rel=1e-6)


def test_padding_does_not_count_and_pieces_do_not_matter(alone, images):
    """Eleven images in batches of three: the last batch has one image too many."""
    features = alone(images)
    assert features.shape == (11, 2048)
    pieces = alone.statistics([images[:5], images[5:10], list(images[10:])])
    whole = metrics.FeatureStatistics.of(features)
    assert pieces.count == 11
    for ours, theirs in ((pieces.mean, whole.mean), (pieces.scatter, whole.scatter)):
        # One image was scaled on the host: rounding, against the largest of small deviations.
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_images_of_different_sizes_are_scaled_one_by_one(alone, images):
    mixed = [images[0], images[1][:25], np.tile(images[2], (1, 2, 1)), images[3]]
    expected = np.concatenate([alone(image[None]) for image in mixed])
    np.testing.assert_allclose(alone(mixed), expected, atol=2e-6 * np.abs(expected).max())


def test_logits_follow_from_the_features(params, alone, images):
    scaled = (np.asarray(resize(images[:3], "clean", 299)) - 128) / 128
    network = jax.jit(lambda images: InceptionV3().apply({"params": params}, images))
    expected = np.asarray(network(scaled).unbiased_logits)
    found = alone.unbiased_logits(alone(images[:3]))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("mode", RESIZES)
def test_the_host_scales_as_the_device_does(mode, images):
    image = images[0]
    expected = np.asarray(resize(image[None], mode, 51))[0]
    np.testing.assert_allclose(resize_one(image, mode, 51), expected, atol=1e-4)


def test_other_ranges_and_modes_are_refused(params, alone, images):
    with pytest.raises(ValueError, match=r"dtype float64: uint8 in 0\.\.255"):
        alone(list(images / 255))
    with pytest.raises(ValueError, match="resize='tensorflo': did you mean 'tensorflow'"):
        Inception(params, "tensorflo")
