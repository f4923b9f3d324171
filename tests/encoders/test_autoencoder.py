import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.encoders import Autoencoder, AutoencoderConfig, sample_posterior
from tests.encoders.conftest import assert_close

TINY = AutoencoderConfig(
    block_out_channels=(4, 8), layers_per_block=1, norm_groups=2, latent_channels=2
)


@pytest.fixture(scope="module")
def tiny():
    module, rng = Autoencoder(TINY), np.random.default_rng(0)
    template = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    # drawn by numpy: compiling 40 initializers takes longer than the tests
    params = jax.tree.map(lambda a: rng.normal(0, 0.2, a.shape).astype(np.float32), template)
    return module, params


@pytest.mark.parametrize("name", ["factor4", "factor8", "no_attention"])
def test_matches_diffusers(name, load_golden, golden_params):
    fields, arrays = load_golden(f"autoencoder_{name}")
    config = AutoencoderConfig(
        latent_channels=fields["latent_channels"],
        block_out_channels=tuple(fields["block_out_channels"]),
        layers_per_block=fields["layers_per_block"],
        norm_groups=fields["norm_num_groups"],
        mid_attention=fields["mid_block_add_attention"],
    )
    module = Autoencoder(config)
    params = golden_params(module, arrays, arrays["images"])

    def both(params, images, latents):
        mean, logvar = module.apply({"params": params}, images, method="encode")
        return mean, logvar, module.apply({"params": params}, latents, method="decode")

    mean, logvar, decoded = jax.jit(both)(params, arrays["images"], arrays["latents"])
    assert_close(mean, arrays["mean"])
    assert_close(logvar, arrays["logvar"])
    assert_close(decoded, arrays["decoded"])


def test_parameter_count_is_stable_diffusions():
    module = Autoencoder(AutoencoderConfig())
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    # diffusers' AutoencoderKL with the config of stable-diffusion-v1-5/vae
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 83_653_863


def test_logvar_is_clamped(tiny):
    module, params = tiny
    channels = TINY.latent_channels
    bias = params["quant_conv"]["bias"].copy()
    bias[channels:] = (1e3, -1e3)
    params = {**params, "quant_conv": {**params["quant_conv"], "bias": bias}}
    encode = jax.jit(lambda p, x: module.apply({"params": p}, x, method="encode"))
    _, logvar = encode(params, np.zeros((1, 8, 8, 3), np.float32))
    np.testing.assert_array_equal(logvar[0, 0, 0], [20.0, -30.0])


def test_posterior_sample_belongs_to_the_example():
    mean = np.zeros((6, 4, 4, 2), np.float32)
    logvar = np.full_like(mean, -1.0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(6))
    draw = jax.jit(sample_posterior)
    whole = np.asarray(draw(mean, logvar, keys))
    np.testing.assert_array_equal(whole[2:4], draw(mean[2:4], logvar[2:4], keys[2:4]))
    assert np.unique(whole - mean).size == whole.size


def test_posterior_sample_has_the_posteriors_moments():
    shape = (64, 16, 16, 2)
    mean, logvar = np.full(shape, 3.0, np.float32), np.full(shape, np.log(0.25), np.float32)
    z = np.asarray(jax.jit(sample_posterior)(mean, logvar, jax.random.split(jax.random.key(0), 64)))
    np.testing.assert_allclose(z.mean(), 3.0, atol=4 * 0.5 / z.size**0.5)
    np.testing.assert_allclose(z.var(), 0.25, rtol=4 * (2 / z.size) ** 0.5)


def test_bfloat16_stays_near_float32(tiny):
    module, params = tiny
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    exact = jax.jit(module.apply)({"params": params}, images)
    config = dataclasses.replace(TINY, dtype="bfloat16")
    rough = jax.jit(Autoencoder(config).apply)({"params": params}, images)
    assert rough.dtype == jnp.float32
    assert_close(rough, exact, 0.1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("block_out_channels", (32, 48), "multiple of norm_groups=32"),
        ("layers_per_block", 0, "at least 1"),
        ("dtype", "float16", "bfloat16"),
    ],
)
def test_bad_config(field, value, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**{field: value})


def test_image_of_a_wrong_size(tiny):
    module, params = tiny
    with pytest.raises(ValueError, match="multiples of 2"):
        module.apply({"params": params}, jnp.zeros((1, 9, 8, 3)), method="encode")
