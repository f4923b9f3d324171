"""A model small enough for tests, with random weights also where training starts at zero."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.diffusion import Schedule
from ldm_scaling.encoders import Autoencoder, AutoencoderConfig
from ldm_scaling.evaluation import Model, ModelCard, TextEncoder
from ldm_scaling.unet import UNet, UNetConfig

UNET = UNetConfig(
    in_channels=4,
    out_channels=4,
    sample_size=4,
    block_out_channels=(8,),
    layers_per_block=1,
    attention_levels=(False,),  # the middle has attention
    heads=2,
    context_size=384,
    norm_groups=4,
    prediction_type="v_prediction",
)
AUTOENCODER = AutoencoderConfig(
    latent_channels=4,
    block_out_channels=(8, 8),
    layers_per_block=1,
    norm_groups=4,
    mid_attention=False,
)
SCHEDULE = Schedule.zero_terminal_snr()


def randomized(tree, seed, scale=1.0):
    """Every leaf redrawn, so that no output is zero or constant by initialisation."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    drawn = [
        scale * rng.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, [leaf.astype(np.float32) for leaf in drawn])


def tiny_params(seed=0):
    latents, context = jnp.zeros((1, 4, 4, 4)), jnp.zeros((1, 3, 384))
    key = jax.random.key(0)
    unet = jax.eval_shape(UNet(UNET).init, key, latents, jnp.zeros(1), context)
    autoencoder = jax.eval_shape(Autoencoder(AUTOENCODER).init, key, jnp.zeros((1, 8, 8, 3)))
    return {
        "unet": randomized(unet["params"], seed),
        # Scaled so that few pixels saturate: differences between images stay visible.
        "autoencoder": randomized(autoencoder["params"], 99, scale=0.5),
    }


@pytest.fixture(scope="session")
def tiny_model():
    return Model(
        card=ModelCard(Path(), "micro", 8, 0, None, {}, ""),
        unet=UNET,
        autoencoder=AUTOENCODER,
        params=tiny_params(),
        schedule=SCHEDULE,
        text_encoder=TextEncoder.__new__(TextEncoder),  # drawing takes contexts, not captions
    )
