"""Training state: bitwise round trips, torn checkpoints, full disks, killed saves."""

import logging as python_logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_scaling.checkpoint import integrity
from ldm_scaling.checkpoint.state import CheckpointError, Checkpoints


class State(NamedTuple):
    step: jax.Array
    params: dict
    key: jax.Array


def make_state(value: float, axis: str | None = "data") -> State:
    mesh = Mesh(np.array(jax.devices()), ("data",))
    place = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(axis)))  # noqa: E731
    whole = NamedSharding(mesh, PartitionSpec())
    noise = jax.random.normal(jax.random.key(int(value)), (16, 8))
    params = {
        "dense_0": {"kernel": place(noise), "bias": place(noise[:, 0].astype(jnp.bfloat16))},
        "odd": jax.device_put(jnp.array([np.nan, -0.0, np.inf, 1e-45]), whole),
    }
    step = jax.device_put(jnp.int32(value), whole)
    return State(step, params, jax.device_put(jax.random.key(7), whole))


def abstract(state: State) -> State:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def bits(state: State) -> list[bytes]:
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def save_steps(folder: Path, *steps: int, **options) -> None:
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"width": 16, "at": step})


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_steps")
    save_steps(folder, 10, 20)
    return folder


@pytest.fixture
def copy_of_two(two_steps, tmp_path):
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


def files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


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


@pytest.mark.parametrize("damage", ["delete", "truncate", "zero"])
def test_any_damaged_file_is_noticed(copy_of_two, damage):
    newest = copy_of_two / "20"
    names = files_of(newest)
    assert any(name.startswith("state/") for name in names)
    for name in names:
        path = newest / name
        content = path.read_bytes()
        if damage == "delete":
            path.unlink()
        elif damage == "truncate":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.write_bytes(bytes(len(content)))
        # Orbax writes this one last; that it is there is all that it says.
        if name != "commit_success.txt" or damage == "delete":
            assert integrity.find_damage(epath.Path(newest)), name
        path.write_bytes(content)
    assert integrity.find_damage(epath.Path(newest)) is None


def test_torn_newest_is_skipped_said_and_set_aside(copy_of_two, caplog):
    files = [p for p in (copy_of_two / "20" / "state").rglob("*") if p.is_file()]
    data = max(files, key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-7])
    with Checkpoints(copy_of_two, keep=2) as checkpoints:
        with caplog.at_level(python_logging.WARNING):
            step, state, _ = checkpoints.restore_latest(abstract(make_state(0)))
        assert step == 10
        assert bits(state) == bits(make_state(10))
        assert str(copy_of_two / "20") in caplog.text
        assert data.name in caplog.text
        # The run comes past step 20 again; the torn one neither blocks it nor counts as kept.
        checkpoints.save(15, make_state(15), {})
        checkpoints.save(20, make_state(20), {})
        checkpoints.wait()
        assert checkpoints.steps() == [15, 20]
        assert checkpoints.restore_latest(abstract(make_state(0)))[0] == 20
    assert (copy_of_two / "20.torn").exists()


def test_all_torn_is_an_error_that_names_them(copy_of_two):
    for step in ("10", "20"):
        (copy_of_two / step / "meta" / "metadata").unlink()
    with pytest.raises(
        CheckpointError, match=r"20 is not whole: meta/metadata[^\0]*10 is not whole"
    ):
        Checkpoints(copy_of_two).restore_latest(abstract(make_state(0)))


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


def test_failing_manifest_fails_the_save(copy_of_two, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(copy_of_two, keep=1)
    monkeypatch.setattr(integrity, "write_manifest", full)
    checkpoints.save(30, make_state(30), {})
    with pytest.raises(CheckpointError, match=r"step 30 could not .*\[10, 20\].*No space left"):
        checkpoints.wait()
    monkeypatch.undo()
    assert files_of(copy_of_two)  # nothing was lost ...
    assert not list(copy_of_two.glob("*tmp*"))  # ... nothing half written stays
    checkpoints.save(30, make_state(30), {})  # and the next one works
    checkpoints.close()
    assert Checkpoints(copy_of_two).steps() == [30]


# A real full disk and a real kill, each in a process of its own: the file size limit stands for
# the disk, because a test may not fill one.
CHILD = """
    import os, resource, signal, sys, time
    sys.path[:0] = [{repo!r}]
    import numpy as np
    from ldm_scaling.checkpoint import integrity
    from ldm_scaling.checkpoint.state import CheckpointError, Checkpoints

    folder, mode = sys.argv[1:]
    checkpoints = Checkpoints(folder, keep=1)
    big = {{"w": np.random.default_rng(0).normal(size=(400, 1000))}}
    checkpoints.save(1, big, {{"at": 1}})
    checkpoints.wait()
    if mode == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            checkpoints.save(2, big, {{"at": 2}})
            checkpoints.wait()
        except CheckpointError as error:
            print("ERROR", error)
    else:
        write = integrity.write_manifest
        integrity.write_manifest = lambda path: (write(path), os.kill(os.getpid(), signal.SIGKILL))
        checkpoints.save(2, big, {{"at": 2}})
        checkpoints.wait()
"""


@pytest.mark.parametrize("mode", ["full", "kill"])
def test_failed_save_leaves_the_previous_one(tmp_path, mode):
    repo = str(Path(__file__).parents[2])
    child = textwrap.dedent(CHILD.format(repo=repo))
    done = subprocess.run(
        [sys.executable, "-c", child, str(tmp_path), mode],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    if mode == "full":
        assert done.returncode == 0, done.stderr
        assert "ERROR step 2 could not be saved" in done.stdout
        assert "untouched: [1]" in done.stdout
        assert "File too large" in done.stdout
        assert files_of(tmp_path)
    else:
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert list(tmp_path.glob("2.orbax*"))  # killed in the middle of the save
    target = {"w": np.zeros((400, 1000))}
    with Checkpoints(tmp_path) as checkpoints:
        step, state, meta = checkpoints.restore_latest(target)
        assert (step, meta) == (1, {"at": 1})
        expected = np.random.default_rng(0).normal(size=(400, 1000))
        assert np.array_equal(np.asarray(state["w"]), expected)
        checkpoints.save(2, target, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_manifest_is_written_before_the_commit(tmp_path, monkeypatch):
    """Else a run killed between the two would leave a checkpoint that nobody can vouch for."""
    seen = []
    write = integrity.write_manifest
    monkeypatch.setattr(
        integrity, "write_manifest", lambda folder: (seen.append(folder.name), write(folder))
    )
    save_steps(tmp_path, 4)
    assert seen == ["4" + ocp.path.atomicity.TMP_DIR_SUFFIX]
