"""FID's Inception: the reference implementations' outputs on the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.checkpoint import names
from ldm_scaling.encoders.inception import InceptionV3
from ldm_scaling.evaluation.resizing import resize
from tests.encoders.conftest import assert_close
from tests.golden_makers._seeded import inception_state


@pytest.fixture(scope="module")
def params():
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    template = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    return names.from_file(template, inception_state(), "seeded")


@pytest.fixture(scope="module")
def network(params):
    return jax.jit(lambda images: InceptionV3().apply({"params": params}, images))


def test_features_are_pytorch_fids(network, load_golden):
    _, arrays = load_golden("inception")
    outputs = network(resize(arrays["images"], "legacy", 299) / 127.5 - 1)
    assert outputs.features.shape == (3, 2048)
    assert_close(outputs.features, arrays["features_legacy"])


def test_features_of_cleanly_resized_images_are_the_same_networks(network, load_golden):
    _, arrays = load_golden("inception")
    outputs = network((resize(arrays["images"], "clean", 299) - 128) / 128)
    assert_close(outputs.features, arrays["features_clean"])


def test_features_and_logits_are_torch_fidelitys(network, load_golden):
    _, arrays = load_golden("inception")
    outputs = network((resize(arrays["images"], "tensorflow", 299) - 128) / 128)
    assert_close(outputs.features, arrays["features_tensorflow"])
    assert_close(outputs.logits, arrays["logits_tensorflow"])
    assert_close(outputs.unbiased_logits, arrays["unbiased_logits_tensorflow"])


def test_the_three_goldens_differ_by_more_than_the_tolerance(load_golden):
    _, arrays = load_golden("inception")
    legacy = arrays["features_legacy"]
    for other in ("features_clean", "features_tensorflow"):
        assert np.abs(arrays[other] - legacy).max() > 1e-2 * np.abs(legacy).max()


def test_images_too_small_for_its_strides_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 64, 80, 3\).* at least 75 x 75"):
        jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros((1, 64, 80, 3)))
