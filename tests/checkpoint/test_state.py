"""Training state: bitwise round trips, what is kept, and what is refused."""

import logging as python_logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from ldm_scaling.checkpoint.state import CheckpointError, Checkpoints
from tests.checkpoint.states import abstract, bits, make_state, save_steps


@pytest.mark.parametrize("async_save", [True, False])
def test_round_trip_is_bitwise_and_takes_the_asked_shardings(tmp_path, async_save):
    saved = make_state(3, axis="data")
    expected = bits(saved)
    with Checkpoints(tmp_path / "run", async_save=async_save) as checkpoints:
        checkpoints.save(3, saved, {"config": {"width": 16}, "loss": 0.5})
        # Training donates its state right after the save.
        jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(saved.params)
        checkpoints.wait()
        target = abstract(make_state(0, axis=None))  # saved sharded, restored replicated
        step, state, meta = checkpoints.restore_latest(target)
    assert (step, meta) == (3, {"config": {"width": 16}, "loss": 0.5})
    assert bits(state) == expected
    kernel = state.params["dense_0"]["kernel"]
    assert kernel.sharding.is_fully_replicated
    assert state.key.dtype == saved.key.dtype


def test_optimizer_states_with_their_empty_nodes(tmp_path):
    mask = {"a": True, "b": False}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.add_decayed_weights(0.01), mask),
        optax.MultiSteps(optax.inject_hyperparams(optax.adam)(1e-3), 2).gradient_transformation(),
    )
    state = optimizer.init({"a": jnp.ones((4, 2)), "b": jnp.ones(3)})
    state = jax.tree.map(jnp.asarray, {"optimizer": state, "ema": None})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        _, restored, _ = checkpoints.restore_latest(jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, state))


def test_missing_or_empty_folder_is_a_fresh_start(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.restore_latest(abstract(make_state(0))) is None
            assert checkpoints.steps() == []
    assert not (tmp_path / "nowhere").exists()


def test_keep_policy(tmp_path):
    save_steps(tmp_path, *range(5, 45, 5), keep=2, keep_period=20)
    assert Checkpoints(tmp_path).steps() == [20, 35, 40]


def test_a_chosen_step(copy_of_two):
    checkpoints = Checkpoints(copy_of_two)
    assert checkpoints.restore_latest(abstract(make_state(0)), step=10)[0] == 10
    with pytest.raises(CheckpointError, match="11 is not whole: missing"):
        checkpoints.restore_latest(abstract(make_state(0)), step=11)


def test_another_state_is_refused_not_skipped(two_steps):
    target = abstract(make_state(0))
    kernel = target.params["dense_0"]["kernel"]
    other = {
        "kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=kernel.sharding),
        "half": jax.ShapeDtypeStruct((16, 8), jnp.bfloat16, sharding=kernel.sharding),
    }
    cases = [
        ({"kernel": other["kernel"]}, "params.dense_0.kernel: [8, 8] expected, [16, 8] found"),
        ({"kernel": other["half"]}, "params.dense_0.kernel is stored as float32, not bfloat16"),
        ({"kernel": kernel, "scale": kernel}, "1 missing:\n    params.dense_0.scale"),
        ({}, "1 unexpected:\n    params.dense_0.kernel"),
    ]
    for dense, message in cases:
        dense = {"bias": target.params["dense_0"]["bias"], **dense}
        bad = target._replace(params={**target.params, "dense_0": dense})
        with pytest.raises(ValueError, match="is the state of something else") as error:
            Checkpoints(two_steps).restore_latest(bad)
        assert message in str(error.value)


def test_saving_an_earlier_step_is_refused(copy_of_two):
    with (
        Checkpoints(copy_of_two) as checkpoints,
        pytest.raises(ValueError, match="already has a checkpoint of step 20"),
    ):
        checkpoints.save(20, make_state(0), {})


def test_how_long_training_waited_is_logged(tmp_path, caplog):
    with caplog.at_level(python_logging.INFO):
        save_steps(tmp_path, 3)
    assert re.search(r"Saved step 3: training waited \d+\.\d\d s", caplog.text)


def test_a_save_says_nothing_to_jax_about_where_the_run_is(tmp_path, monkeypatch):
    """JAX takes every step that it is asked about for the one that the loop has reached."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    save_steps(tmp_path, 3)
    assert asked == []


def test_bad_keep():
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints("anywhere", keep=0)
    with pytest.raises(ValueError, match="keep_period=0"):
        Checkpoints("anywhere", keep_period=0)
