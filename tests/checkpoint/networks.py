"""Small networks with random weights."""

import dataclasses
import functools

import jax
import numpy as np

from ldm_scaling.checkpoint.merge import flatten
from ldm_scaling.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ldm_scaling.unet.config import UNetConfig
from ldm_scaling.unet.unet import UNet

SMALL = UNetConfig(
    in_channels=3,
    out_channels=5,
    sample_size=8,
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention_levels=(True, False),
    heads=2,
    context_size=12,
    norm_groups=4,
    prediction_type="v_prediction",
)
UNETS = {
    "sd1": SMALL,
    "sd2": dataclasses.replace(SMALL, linear_projection=True, heads=(1, 2), layers_per_block=2),
}
VAES = {
    "sd": AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_groups=4),
    "micro": AutoencoderConfig(
        latent_channels=8,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_groups=8,
        mid_attention=False,
        scaling_factor=0.7,
        shift_factor=0.25,
    ),
}


def random_like(template, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), template)


@functools.cache  # tracing a UNet takes seconds
def unet_shapes(config):
    shapes = ((1, 8, 8, config.in_channels), (1,), (1, 2, config.context_size))
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return jax.eval_shape(UNet(config).init, jax.random.key(0), *arguments)["params"]


def unet_params(config):
    return random_like(unet_shapes(config))


def vae_params(config):
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    return random_like(jax.eval_shape(Autoencoder(config).init, jax.random.key(0), image)["params"])


def assert_same(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert np.array_equal(a[name], b[name]), name
