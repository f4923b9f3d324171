import jax
import numpy as np
import pytest
from ml_collections import ConfigDict


@pytest.fixture(scope="session")
def random_params():
    """Parameters as `init` would draw them, but without the seconds of compiling it."""

    def draw(init, *arguments):
        rng = np.random.default_rng(0)

        def leaf(path, shape):
            if path[-1].key == "scale":
                return np.ones(shape.shape, np.float32)
            fan_in = max(1, int(np.prod(shape.shape[:-1])))
            size = 0.0 if path[-1].key == "bias" else fan_in**-0.5
            return (size * rng.normal(size=shape.shape)).astype(np.float32)

        return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init, *arguments))

    return draw


@pytest.fixture(scope="session")
def toy_optimizer():
    return ConfigDict(
        {
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "decay": "constant",
            "decay_steps": 0,
            "b1": 0.9,
            "b2": 0.99,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
        }
    )
