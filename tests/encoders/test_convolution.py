import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.encoders.autoencoder import GroupNorm
from ldm_scaling.encoders.convolution import convolve, lecun_normal, upsample_convolve
from tests.encoders.conftest import assert_close


def plain(x, kernel, stride=1, padding=((1, 1), (1, 1))):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, None, None, dimensions)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def value_and_pullback(function, x, kernel):
    """Value, and gradients against a random cotangent."""
    cotangent = normal(2, *jax.eval_shape(function, x, kernel).shape)

    def both(x, kernel):
        y, transpose = jax.vjp(function, x, kernel)
        return y, transpose(cotangent)

    return jax.jit(both)(x, kernel)


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [
        (3, 1, ((1, 1), (1, 1))),
        (3, 2, ((0, 1), (0, 1))),
        (2, 1, ((1, 1), (1, 1))),
        (1, 1, ((0, 0), (0, 0))),
    ],
)
def test_gradients_are_xlas(size, stride, padding):
    x = normal(0, 3, 8, 6, 5)
    kernel = normal(1, size, size, 5, 4)
    ours = value_and_pullback(lambda x, k: convolve(x, k, stride, padding), x, kernel)
    xlas = value_and_pullback(lambda x, k: plain(x, k, stride, padding), x, kernel)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), ours, xlas)


def test_gradient_on_tpu_leaves_the_kernel_to_xla():
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    loss = jax.grad(lambda k, x: convolve(x, k, 1, ((1, 1), (1, 1))).sum())
    traced = jax.jit(loss).trace(kernel, x)
    assert "while" not in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "while" in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_upsampling_convolution_is_doubling_then_convolution():
    x = normal(0, 2, 5, 3, 4)
    kernel = normal(1, 3, 3, 4, 6)

    def doubled(x, kernel):
        return plain(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), kernel)

    ours = value_and_pullback(upsample_convolve, x, kernel)
    plains = value_and_pullback(doubled, x, kernel)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), ours, plains)


def test_group_norm_survives_a_mean_far_from_zero():
    x = 1e3 + normal(0, 2, 8, 8, 6)
    module = GroupNorm(3, "float32")
    params = {"scale": np.ones(6, np.float32), "bias": np.zeros(6, np.float32)}
    y = jax.jit(module.apply)({"params": params}, x)
    exact = np.asarray(x, np.float64).reshape(2, 64, 3, 2)
    exact = exact - exact.mean((1, 3), keepdims=True)
    exact = exact / exact.std((1, 3), keepdims=True)
    assert_close(y, exact.reshape(x.shape), 1e-4)


def test_initial_kernels_have_flax_variance():
    kernel = lecun_normal(jax.random.key(0), (3, 3, 32, 64))
    flax = nn.initializers.lecun_normal()(jax.random.key(1), (3, 3, 32, 64))
    np.testing.assert_allclose(kernel.var(), flax.var(), rtol=0.05)
