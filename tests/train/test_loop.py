import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ldm_scaling.checkpoint.state import Checkpoints
from ldm_scaling.records import read_records
from ldm_scaling.sharding import make_mesh
from ldm_scaling.train import loop, step
from ldm_scaling.train.interrupt import Interrupt
from ldm_scaling.train.report import BadStepsError
from ldm_scaling.train.workdir import ForeignWorkdirError
from tests.train.toy import ToyBatches, ToyTask, toy_config


@pytest.fixture(autouse=True, scope="module")
def programs():
    """One program for all runs on a mesh: started, resumed, with bad steps, it compiles once."""
    built = {}

    def build(task, optimizer, mesh, **kwargs):
        key = (mesh, *kwargs.items())
        if key not in built:
            built[key] = original(task, optimizer, mesh, **kwargs)
        return built[key]

    original, step.build = step.build, build
    yield built
    step.build = original
    assert built
    assert [program.step._cache_size() for program in built.values()] == [1] * len(built)


def run(workdir, batches=None, **changes):
    mesh = make_mesh(devices=jax.devices()[:1])
    return loop.run(
        toy_config(**changes), workdir, mesh, ToyTask(), batches or ToyBatches(), ToyBatches()
    )


def interrupting(number, at_step):
    """Batches that raise a signal while batch `at_step` is fetched."""
    return ToyBatches(on_step=lambda step: step == at_step and signal.raise_signal(number))


def assert_bitwise(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, programs):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, run(workdir, eval_every=6, export_steps=(3,), export_every=10)


def test_a_run_leaves_what_it_promises(undisturbed):
    workdir, state = undisturbed
    assert int(state.step) == 12
    assert Checkpoints(workdir / "checkpoints").steps() == [10, 12]
    exports = sorted(p.name for p in (workdir / "export").iterdir())
    assert exports == ["final", "step_000003", "step_000010"]
    facts = json.loads((workdir / "export" / "final" / "training.json").read_text())
    assert (facts["step"], facts["examples"], facts["weights"]) == (12, 192, "ema")
    assert list(workdir.glob("events.out.tfevents.*"))


def test_the_moving_average_is_what_is_exported(undisturbed):
    workdir, state = undisturbed
    exported = np.load(workdir / "export" / "final" / "params.npz")
    np.testing.assert_array_equal(exported["out"], state.ema_params["out"]["kernel"])
    assert not np.array_equal(exported["out"], state.params["out"]["kernel"])


def test_records_tell_loss_against_compute(undisturbed):
    workdir, _ = undisturbed
    records = read_records(workdir / "training.jsonl")
    losses = {r.point["step"]: r for r in records if r.kind == "training" and not r.protocol}
    assert sorted(losses) == [4, 8, 12]
    assert losses[12].metrics["loss"].value < losses[4].metrics["loss"].value
    assert losses[4].metrics["loss"].low < losses[4].metrics["loss"].value
    assert losses[12].costs["training_flops"] == 3 * (2 * 16 * 16) * 12 * 16
    assert losses[12].costs["parameters"] == 2 * 16 * 32
    evaluated = [r.point["step"] for r in records if r.protocol.get("split") == "validation"]
    assert sorted(evaluated) == [6, 12]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_interrupted_and_resumed_is_bitwise_undisturbed(
    undisturbed, tmp_path, number, code, caplog
):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, interrupting(number, at_step=6))
    assert end.value.code == code
    assert f"{number.name}: stopped after step 7 of 12 and saved" in caplog.text
    assert Checkpoints(tmp_path / "checkpoints").steps() == [5, 7]
    assert_bitwise(run(tmp_path), undisturbed[1])


def test_resumed_on_other_devices(undisturbed, tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, interrupting(signal.SIGINT, at_step=4))
    state = loop.run(toy_config(), tmp_path, make_mesh(), ToyTask(), ToyBatches())
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(undisturbed[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_signal_handlers_are_put_back(before):
    outside = signal.signal(signal.SIGINT, before)
    try:
        with Interrupt():
            assert signal.getsignal(signal.SIGINT) is not before
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, outside)


def test_too_many_bad_steps_stop_the_run_and_spare_the_checkpoint(tmp_path, programs):
    with pytest.raises(BadStepsError, match=r"stopped at step 10: NaN or Inf .* 3 steps in a row"):
        run(tmp_path, ToyBatches(bad_steps=(7, 8, 9)))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [5]
    state = next(iter(programs.values())).state
    _, saved, _ = Checkpoints(tmp_path / "checkpoints").restore_latest(state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(saved))


def test_few_bad_steps_are_logged_and_counted(tmp_path, caplog):
    state = run(tmp_path, ToyBatches(bad_steps=(2, 5, 6)))
    assert int(state.skipped_total) == 3
    assert sum("not applied" in message for message in caplog.messages) == 3
    assert "step 7: not applied, loss=nan grad_norm=nan (2 in a row, 3 in all)" in caplog.text


def test_training_can_be_extended(undisturbed, tmp_path):
    run(tmp_path, num_steps=6)
    assert_bitwise(run(tmp_path, num_steps=12), undisturbed[1])
    assert_bitwise(run(tmp_path, num_steps=12), undisturbed[1])  # nothing left to do


def test_other_frozen_weights_are_refused(tmp_path):
    run(tmp_path, num_steps=6)
    task = ToyTask()
    task.frozen = {"target": task.frozen["target"] + 1e-3}
    mesh = make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ForeignWorkdirError, match="trained with other frozen weights"):
        loop.run(toy_config(), tmp_path, mesh, task, ToyBatches())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 15, "accumulate": 2}, "batch_size=15: must be a multiple"),
        ({"num_steps": 0}, "num_steps=0: must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
    ],
)
def test_bad_config_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.1])
def test_killed_and_resumed_is_bitwise_undisturbed(undisturbed, tmp_path, seconds):
    """SIGKILL at some moment after the first checkpoint: in a step, in a save, between."""
    script = (
        "import sys, time, jax; from pathlib import Path; from toy import *\n"
        "from ldm_scaling.train.loop import run; from ldm_scaling.sharding import make_mesh\n"
        "batches = ToyBatches(on_step=lambda step: time.sleep(0.1))\n"
        "run(toy_config(checkpoint_every=1), Path(sys.argv[1]), make_mesh(), ToyTask(), batches)\n"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""},
    )
    checkpoints = tmp_path / "checkpoints"
    while not checkpoints.exists() or not Checkpoints(checkpoints).steps():
        assert process.poll() is None, "ended before its first checkpoint"
        time.sleep(0.02)
    time.sleep(seconds)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert_bitwise(run(tmp_path), undisturbed[1])


@pytest.mark.slow
def test_profiles_on_request(tmp_path):
    run(tmp_path, profile_every=6, num_steps=14)
    assert list(tmp_path.rglob("*.xplane.pb"))
