"""DINOv2 against transformers' model, and its positions at other sizes of image."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.checkpoint.diffusers import import_dinov2
from ldm_scaling.encoders.dinov2 import (
    META_OFFSET,
    Dinov2,
    Dinov2Config,
    position_matrix,
    positions_of,
)
from tests.encoders.conftest import assert_close, root_mean_square

QUICK = {"xla_backend_optimization_level": 0}  # compiling is most of the time here


@pytest.fixture(scope="module")
def small(load_golden):
    """small(name) -> config, variables, arrays."""

    @functools.cache
    def load(name):
        raw, arrays = load_golden(f"dinov2_{name}")
        state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
        config, params = import_dinov2(state, raw)
        return config, {"params": params}, arrays

    return load


def run(config, variables, pixels):
    return jax.jit(Dinov2(config).apply, compiler_options=QUICK)(variables, pixels)


@pytest.mark.parametrize("name", ["mlp", "swiglu"])
@pytest.mark.parametrize("size", ["20x20", "12x28"])
def test_matches_transformers(small, name, size):
    config, variables, arrays = small(name)
    assert config.image_size == 20
    found = run(config, variables, arrays[f"pixels_{size}"])
    assert found.dtype == jnp.float32
    assert_close(found, arrays[f"states_{size}"], 1e-5)


def test_matches_metas_positions_where_asked(small):
    config, variables, arrays = small("mlp")
    metas = dataclasses.replace(config, position_offset=META_OFFSET)
    pixels, expected = arrays["pixels_12x28"], arrays["metas_states_12x28"]
    assert_close(run(metas, variables, pixels), expected, 1e-5)
    assert root_mean_square(arrays["states_12x28"], expected) > 1e-3  # the two do differ
    # Not where positions are left as they are.
    whole = arrays["pixels_20x20"]
    np.testing.assert_array_equal(run(metas, variables, whole), run(config, variables, whole))


def test_bfloat16_stays_near_float32(small):
    config, variables, arrays = small("mlp")
    rough = dataclasses.replace(config, dtype="bfloat16")
    found = run(rough, variables, arrays["pixels_20x20"])
    assert found.dtype == jnp.float32
    assert 1e-3 < root_mean_square(found, arrays["states_20x20"]) < 0.02


def test_interpolation_keeps_constants_and_turns_with_the_image():
    for target in (3, 5, 16, 40):
        for offset in (0.0, META_OFFSET):
            np.testing.assert_allclose(position_matrix(16, target, offset).sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(position_matrix(7, 7, 0.0), np.eye(7), atol=1e-15)
    table = np.random.default_rng(0).normal(size=(1, 26, 3)).astype(np.float32)
    turned = table.copy()
    turned[0, 1:] = table[0, 1:].reshape(5, 5, 3).swapaxes(0, 1).reshape(25, 3)
    high, wide = np.asarray(positions_of(table, 7, 3)), np.asarray(positions_of(turned, 3, 7))
    np.testing.assert_array_equal(high[:, 0], wide[:, 0])
    np.testing.assert_allclose(
        high[0, 1:].reshape(7, 3, 3), wide[0, 1:].reshape(3, 7, 3).swapaxes(0, 1), atol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        # transformers' Dinov2Model of facebook/dinov2-small, -large and -giant, less the mask token
        (
            {
                "hidden_size": 384,
                "intermediate_size": 1536,
                "num_hidden_layers": 12,
                "num_attention_heads": 6,
            },
            22_056_192,
        ),
        ({}, 304_367_616),
        (
            {
                "hidden_size": 1536,
                "intermediate_size": 4096,
                "num_hidden_layers": 40,
                "num_attention_heads": 24,
                "use_swiglu_ffn": True,
            },
            1_136_479_232,
        ),
    ],
)
def test_parameter_counts_are_those_of_the_published_models(changes, count):
    image = jax.ShapeDtypeStruct((1, 14, 14, 3), jnp.float32)
    params = jax.eval_shape(Dinov2(Dinov2Config(**changes)).init, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 7}, "num_attention_heads=7: must divide"),
        ({"patch_size": 15}, "patch_size=15: must divide 518"),
        ({"position_offset": 1.0}, r"position_offset=1\.0: at least 0 and less than 1"),
        ({"hidden_act": "geluu"}, "did you mean 'gelu'"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        Dinov2Config(**fields)


@pytest.mark.parametrize("shape", [(1, 20, 18, 3), (1, 20, 20, 1)])
def test_images_that_do_not_fit(small, shape):
    config, variables, _ = small("mlp")
    with pytest.raises(ValueError, match="sides must be multiples of 4, channels 3"):
        Dinov2(config).apply(variables, jnp.zeros(shape))
