"""The UNet computes what diffusers' UNet2DConditionModel computes, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.checkpoint import names
from ldm_scaling.unet import UNet


def assert_close(actual, expected, tolerance=1e-4):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", ["sd1", "sd2", "v_prediction"])
def test_output(load_golden, jit, name):
    config, params, golden = load_golden(name)
    inputs = (golden["x"], golden["t"], golden["context"])
    output = jit(UNet(config).apply)({"params": params}, *map(jnp.asarray, inputs))
    assert output.dtype == jnp.float32
    assert_close(output, golden["output"])


def test_output_and_gradients(load_golden, jit):
    config, params, golden = load_golden("micro")
    x, t, context, cotangent = (
        jnp.asarray(golden[name]) for name in ("x", "t", "context", "cotangent")
    )

    @jit
    def backward(params):
        output, pull = jax.vjp(lambda p: UNet(config).apply({"params": p}, x, t, context), params)
        return output, pull(cotangent)[0]

    output, gradients = backward(params)
    assert_close(output, golden["output"])
    found = names.to_file(gradients)
    expected = {k.removeprefix("gradient/"): v for k, v in golden.items() if "gradient/" in k}
    assert len(expected) > 10
    for name, value in expected.items():
        assert_close(found[name], value)


def test_golden_configs_differ_where_checkpoints_do(load_golden):
    sd1, sd2, v, micro = (load_golden(n)[0] for n in ("sd1", "sd2", "v_prediction", "micro"))
    assert (sd1.linear_projection, sd2.linear_projection) == (False, True)
    assert isinstance(sd1.heads, int)
    assert isinstance(sd2.heads, tuple)
    assert (sd1.prediction_type, v.prediction_type) == ("epsilon", "v_prediction")
    assert v.in_channels != v.out_channels
    assert micro.attention_levels == (True, True, False)
