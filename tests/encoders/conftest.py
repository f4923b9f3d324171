"""Goldens -> (arrays, parameters)."""

import json

import jax
import numpy as np
import pytest

from ldm_scaling.checkpoint import names


@pytest.fixture(scope="session")
def load_golden(goldens):
    """load(name) -> (config dict, arrays) of tests/goldens/encoders_<name>.npz."""

    def load(name):
        with np.load(goldens / f"encoders_{name}.npz") as file:
            arrays = dict(file)
        return json.loads(str(arrays.pop("config", "{}"))), arrays

    return load


@pytest.fixture(scope="session")
def golden_params():
    """Parameters of a module from a golden's "state/..." arrays; strict about names and shapes."""

    def convert(module, arrays, *inputs):
        template = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
        state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
        return names.from_file(template, state, "golden")

    return convert


def assert_close(actual, expected, tolerance=1e-4):
    """Largest difference within `tolerance` of the largest expected value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def root_mean_square(actual, expected):
    """Of the error, relative to that of what is expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean())
