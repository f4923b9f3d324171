import pytest
from ml_collections import ConfigDict


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
