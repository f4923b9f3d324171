"""What the options of a UNet change, and what they must not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ldm_scaling.unet import UNet
from ldm_scaling.unet.blocks import ResnetBlock, Transformer, timestep_embedding
from ldm_scaling.unet.layers import GroupNorm, conv, lecun_normal


def output_and_gradient(config, params, inputs, jit):
    def loss(params):
        output = UNet(config).apply({"params": params}, *inputs)
        return jnp.sum(jnp.square(output)), output

    function = jit(jax.value_and_grad(loss, has_aux=True))
    compiled = function.lower(params).compile()
    (_, output), gradient = compiled(params)
    return output, gradient, compiled


@pytest.fixture(scope="module")
def plain(tiny, jit):
    return output_and_gradient(*tiny, jit)


def assert_trees_close(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = float(jnp.abs(y).max()) + 1e-6
        np.testing.assert_allclose(x / scale, y / scale, atol=tolerance)


def residual_bytes(config, params, inputs):
    """Bytes kept for the backward pass, beyond parameters and inputs."""

    def forward(params):
        return UNet(config).apply({"params": params}, *inputs)

    kept = jax.eval_shape(lambda p: jax.tree.leaves(jax.vjp(forward, p)[1]), params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)


@pytest.mark.parametrize(("remat", "kept"), [("block", 0.5), ("dots", 0.8)])
def test_remat_changes_memory_only(tiny, plain, jit, remat, kept):
    config, params, inputs = tiny
    remat = dataclasses.replace(config, remat=remat)
    output, gradient, _ = output_and_gradient(remat, params, inputs, jit)
    assert_trees_close(output, plain[0])
    assert_trees_close(gradient, plain[1])
    assert residual_bytes(remat, params, inputs) < kept * residual_bytes(config, params, inputs)


def test_dots_keeps_what_products_return(tiny):
    """More than "block" keeps, and of attention nothing of the size of its scores."""
    config, params, inputs = tiny
    kept = {
        r: residual_bytes(dataclasses.replace(config, remat=r), params, inputs)
        for r in ("none", "block", "dots")
    }
    assert kept["block"] < kept["dots"] < kept["none"]


def test_offload_keeps_blocks_in_the_hosts_memory(tiny):
    """What the backward pass reads is moved to the host and back; nothing else is kept."""
    config, params, inputs = tiny
    offload = dataclasses.replace(config, remat="offload")

    def loss(params):
        return jnp.sum(jnp.square(UNet(offload).apply({"params": params}, *inputs)))

    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    blocks = 3 + 3 + 6  # residual blocks and transformers: down, middle, up
    assert text.count("pinned_host") >= blocks or text.count("Host") >= blocks
    assert residual_bytes(offload, params, inputs) < 0.5 * residual_bytes(config, params, inputs)


def test_bfloat16_stays_close_and_keeps_parameters(tiny, plain, jit):
    config, params, inputs = tiny
    half = dataclasses.replace(config, dtype="bfloat16")
    output = jit(UNet(half).apply)({"params": params}, *inputs)
    assert output.dtype == jnp.float32
    error = jnp.abs(output - plain[0]).max() / jnp.abs(plain[0]).max()
    assert 1e-4 < error < 0.05  # it did compute in bfloat16
    shapes = jax.eval_shape(UNet(half).init, jax.random.key(0), *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_blocks_start_as_the_identity(jit):
    x, time, context = jnp.ones((1, 4, 4, 8)), jnp.ones((1, 6)), jnp.ones((1, 3, 5))
    x = x * jnp.arange(8.0)[None, None, None]
    for block, other in ((ResnetBlock(8, groups=4), time), (Transformer(2, groups=4), context)):
        output, variables = jit(block.init_with_output)(jax.random.key(0), x, other)
        np.testing.assert_array_equal(output, x)
        kernels = traverse_util.flatten_dict(variables["params"], sep="/")
        zeros = {k.split("/")[0] for k, v in kernels.items() if "kernel" in k and not v.any()}
        assert zeros == {"conv2" if isinstance(block, ResnetBlock) else "proj_out"}


def test_initial_kernels_have_variance_one_over_fan_in():
    kernel = lecun_normal(jax.random.key(0), (3, 3, 100, 64))
    assert float(kernel.std()) == pytest.approx(900**-0.5, rel=0.02)
    assert float(kernel.mean()) == pytest.approx(0, abs=1e-3)


def test_wrong_shapes_are_named(tiny):
    config, params, (x, t, context) = tiny

    def apply(*inputs):
        return jax.eval_shape(UNet(config).apply, {"params": params}, *inputs)

    with pytest.raises(ValueError, match="15x16: both must be multiples of 2"):
        apply(x[:, :15], t, context)
    with pytest.raises(ValueError, match=r"2 channels: config.in_channels=3"):
        apply(x[..., :2], t, context)
    with pytest.raises(ValueError, match=r"4 features: config.context_size=6"):
        apply(x, t, context[..., :4])


def test_timestep_embedding():
    embedding = np.asarray(timestep_embedding(jnp.array([0, 7]), 8))
    np.testing.assert_allclose(embedding[0], [1] * 4 + [0] * 4)
    angles = 7 * 10_000.0 ** -(np.arange(4) / 4)
    np.testing.assert_allclose(embedding[1], [*np.cos(angles), *np.sin(angles)], rtol=1e-5)


def test_group_norm_against_its_definition():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(2, 4, 6, 12)).astype(np.float32)
    norm = GroupNorm(groups=3, epsilon=1e-5)
    scale, bias = np.linspace(1, 2, 12, dtype=np.float32), np.arange(12, dtype=np.float32)
    y = norm.apply({"params": {"scale": scale, "bias": bias}}, jnp.asarray(x))
    grouped = x.reshape(2, 24, 3, 4).astype(np.float64)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert norm.apply({"params": {"scale": scale, "bias": bias}}, jnp.asarray(x)).dtype == x.dtype


@pytest.mark.parametrize(("size", "strides"), [((2, 2), 1), ((4, 4), 1), ((4, 4), 2), ((1, 8), 1)])
def test_tiny_convolution_equals_xla(size, strides):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, *size, 5)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 5, 7)), jnp.float32)
    bias = jnp.zeros(7)
    layer = conv(7, 3, jnp.float32, strides=(strides, strides))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (strides,) * 2, ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    actual = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
