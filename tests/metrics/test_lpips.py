"""LPIPS against the `lpips` package: its heads, on random weights of torchvision's networks."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.checkpoint import names
from ldm_scaling.checkpoint.packaged import load_lpips_heads
from ldm_scaling.encoders.lpips_backbones import BACKBONES, LpipsBackbone
from ldm_scaling.metrics import lpips_distance
from tests.golden_makers._seeded import backbone_state
from tests.golden_makers.image_metrics import picture

HEADS_INSTALLED = importlib.util.find_spec("lpips") is not None


def made_ready(net):
    """images [-1, 1] -> activations, on the golden's random weights."""
    module = LpipsBackbone(net)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    template = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    params = names.from_file(template, backbone_state(net), net)
    return jax.jit(lambda images: module.apply({"params": params}, images))


@pytest.mark.skipif(not HEADS_INSTALLED, reason="pip install --no-deps lpips==0.1.4")
@pytest.mark.parametrize("net", BACKBONES)
def test_equals_the_lpips_package(goldens, net):
    with np.load(goldens / "metrics_lpips.npz") as file:
        arrays = dict(file)
    activations, heads = made_ready(net), load_lpips_heads(net)
    odd = picture(67, 74)[None], picture(74, 67).transpose(1, 0, 2)[None]
    for name, pair in (("photographs", (arrays["images"], arrays["others"])), ("odd", odd)):
        taps = [activations(x.astype(np.float32) / 127.5 - 1) for x in pair]
        for one, other in (taps, taps[::-1]):
            found = np.asarray(lpips_distance(one, other, heads))
            np.testing.assert_allclose(found, arrays[f"{name}/{net}"], atol=1e-4)
    assert arrays[f"photographs/{net}"][3] == 0  # the same image twice
    assert found.min() > 0.05


def test_is_zero_only_for_equal_images_and_its_gradient_is_finite():
    activations = made_ready("alex")
    heads = [jnp.ones(stage[-1].channels) for stage in BACKBONES["alex"].stages]
    black = jnp.zeros((1, 32, 48, 3))
    other = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 32, 48, 3)), jnp.float32)

    def distance(image):
        return lpips_distance(activations(image), activations(other), heads)[0]

    assert distance(other) == 0
    assert distance(black) > 0.1
    for image in (black, other):
        assert np.isfinite(jax.grad(distance)(image)).all()


def test_dead_pixels_count_as_equal_and_have_no_gradient():
    zeros, ones = jnp.zeros((1, 2, 2, 3)), jnp.ones((1, 2, 2, 3))
    heads = [jnp.ones(3)]

    def distance(x, y):
        return lpips_distance([x], [y], heads)[0]

    assert distance(zeros, zeros) == 0
    assert distance(ones, 5 * ones) == pytest.approx(0, abs=1e-12)  # directions alone matter
    assert distance(zeros, ones) == pytest.approx(1)
    assert (jax.grad(distance)(zeros, ones) == 0).all()


def test_small_images_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 31, 40, 3\).* at least 32 x 32"):
        jax.eval_shape(LpipsBackbone("vgg").init, jax.random.key(0), jnp.zeros((1, 31, 40, 3)))
