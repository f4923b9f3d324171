"""A newest checkpoint that lost any one file, or the end of one, is never used: the one before is.

Sixty cases, each with a file and a damage drawn from its seed.
"""

import logging as python_logging
from pathlib import Path

import jax
import numpy as np
import pytest

from ldm_scaling.checkpoint.state import Checkpoints
from ldm_scaling.sharding import make_mesh
from ldm_scaling.train.optimizer import make_optimizer
from ldm_scaling.train.step import build
from tests.train.toy import ToyBatches, ToyTask, toy_config

CASES = 60


def program(devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    optimizer = make_optimizer(toy_config().optimizer)
    return build(ToyTask(), optimizer, mesh, seed=0, ema_decay=0.9, min_shard_size=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, step -> the state's leaves): checkpoints of steps 1 and 2, spread over 8 devices."""
    folder = tmp_path_factory.mktemp("run")
    spread = program(8)
    state, expected = spread.init(), {}
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            batch = ToyBatches().batch(step)
            state, _ = spread.step(state, ToyTask().frozen, batch)
            checkpoints.save(step, state, {"at": step})
            expected[step] = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return folder, expected


@pytest.fixture(scope="module")
def narrower():
    """The state on half of the devices, as it is after a restart with fewer."""
    return program(4).state


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_is(state, expected):
    """Step, parameters, optimizer and moving average, bit for bit."""
    leaves = jax.tree.leaves(state)
    for leaf, wanted in zip(leaves, expected, strict=True):
        assert leaf.dtype == wanted.dtype
        np.testing.assert_array_equal(leaf, wanted)


def test_the_whole_one_is_used_on_other_devices(run, narrower):
    folder, expected = run
    step, state, meta = Checkpoints(folder).restore_latest(narrower)
    assert (step, meta, int(state.step)) == (2, {"at": 2}, 2)
    assert_is(state, expected[2])
    for part in (state.params, state.ema_params, state.opt_state):
        matrices = [leaf for leaf in jax.tree.leaves(part) if leaf.ndim == 2]
        assert all(len(leaf.sharding.device_set) == 4 for leaf in matrices)
        assert all(leaf.addressable_shards[0].data.size == leaf.size // 4 for leaf in matrices)
    assert any((a != b).any() for a, b in zip(expected[1], expected[2], strict=True))


@pytest.mark.parametrize("seed", range(CASES))
def test_a_torn_newest_is_skipped_with_a_message(run, narrower, seed, caplog):
    folder, expected = run
    rng = np.random.default_rng(seed)
    path = rng.choice(np.array(files_of(folder / "2"), dtype=object))
    content = path.read_bytes()
    # What is in a top-level commit_success.txt says nothing; that it is there, and not empty, does.
    marker = path == folder / "2" / "commit_success.txt"
    kept = 0 if marker else int(rng.integers(0, max(1, len(content))))
    try:
        if content and rng.random() < 0.5:
            path.write_bytes(content[:kept])
        else:
            path.unlink()
        with caplog.at_level(python_logging.WARNING):
            step, state, meta = Checkpoints(folder).restore_latest(narrower)
    finally:
        path.write_bytes(content)
    assert (step, meta) == (1, {"at": 1})
    assert_is(state, expected[1])
    assert f"Skipped a checkpoint. {folder / '2'} is not whole" in caplog.text
