"""Goldens -> (config, parameters, inputs); and a network whose zero layers are not zero."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.checkpoint.diffusers import import_unet
from ldm_scaling.unet import UNet, UNetConfig

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time, runs on little


@pytest.fixture(scope="session")
def jit():
    """`jax.jit` for networks that run once."""
    return functools.partial(jax.jit, compiler_options=QUICK)


@pytest.fixture(scope="session")
def load_golden(goldens):
    """load(name) -> (config, params, arrays) of tests/goldens/unet_<name>.npz."""

    def load(name):
        with np.load(goldens / f"unet_{name}.npz") as file:
            arrays = dict(file)
        raw = json.loads(str(arrays.pop("config")))
        prediction_type = str(arrays.pop("prediction_type"))
        state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
        config, params = import_unet(state, {**raw, "_prediction_type": prediction_type})
        return config, params, arrays

    return load


@pytest.fixture(scope="session")
def tiny():
    """(config, params, (x, t, context)): two levels, 16x16 latents, every parameter random."""
    config = UNetConfig(
        in_channels=3,
        out_channels=3,
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_levels=(True, False),
        heads=2,
        context_size=6,
        norm_groups=4,
    )
    rng = np.random.default_rng(0)
    inputs = (
        jnp.asarray(rng.normal(size=(2, 16, 16, 3)), jnp.float32),
        jnp.array([10.0, 700.0]),
        jnp.asarray(rng.normal(size=(2, 5, 6)), jnp.float32),
    )
    shapes = jax.eval_shape(UNet(config).init, jax.random.key(0), *inputs)["params"]
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape, scale=0.1), jnp.float32), shapes
    )
    return config, params, inputs
