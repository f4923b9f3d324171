"""Runs of several real processes: the same losses, the same end, and the same after a kill."""

import json
import random
import shutil
import signal
import time

import numpy as np
import pytest
from processes import Processes

from ldm_scaling.checkpoint.state import Checkpoints
from ldm_scaling.sharding import make_mesh
from ldm_scaling.train import loop
from tests.train.outcome import (
    assert_bitwise,
    assert_same_losses,
    held_out_losses,
    losses,
    saved_state,
)
from tests.train.toy import ToyBatches, ToyTask, toy_config

HEARTBEAT = 20
QUICK = {"log_every": 1, "checkpoint_every": 4, "keep_checkpoints": 3}
FSDP = {"fsdp": -1}


@pytest.fixture(autouse=True, scope="module")
def compiled(tmp_path_factory):
    """All processes share what the first of them compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process on eight devices: (workdir, losses)."""
    workdir = tmp_path_factory.mktemp("alone")
    config = toy_config(**QUICK, eval_every=6)
    loop.run(config, workdir, make_mesh(), ToyTask(), ToyBatches(), ToyBatches())
    return workdir, losses(workdir)


def start(tmp_path, workdir, count=2, devices=2, mesh=FSDP, special=None, flags=(), **config):
    options = {"workdir": str(workdir), "mesh": mesh, "config": {**QUICK, **config}}
    logs = tmp_path / f"logs{len(list(tmp_path.glob('logs*')))}"
    flags = (f"--heartbeat_timeout_seconds={HEARTBEAT}", *flags) if count > 1 else flags
    return Processes(logs, count, devices, options, special, flags)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Two processes with two devices each, to the end: (workdir, logs)."""
    tmp_path = tmp_path_factory.mktemp("undisturbed")
    with start(tmp_path, tmp_path / "run", eval_every=6, export_steps=(3,)) as processes:
        processes.finish()
        return tmp_path / "run", [processes.log(index) for index in range(2)]


def test_two_processes_do_what_one_does(alone, undisturbed):
    workdir, _ = undisturbed
    assert_same_losses(workdir, alone[1])
    for a, b in zip(saved_state(workdir)[1], saved_state(alone[0])[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert held_out_losses(workdir) == pytest.approx(held_out_losses(alone[0]), rel=1e-5)
    assert sorted(held_out_losses(workdir)) == [6, 12]
    for name in ("step_000003", "final"):
        assert (workdir / "export" / name / "params.npz").exists()
    exported = np.load(workdir / "export" / "final" / "params.npz")["out"]
    expected = np.load(alone[0] / "export" / "final" / "params.npz")["out"]
    np.testing.assert_allclose(exported, expected, rtol=1e-5, atol=1e-6)


def test_one_process_writes_and_all_say_who_they_are(undisturbed):
    workdir, logs = undisturbed
    lines = (workdir / "training.jsonl").read_text().splitlines()
    hashes = [json.loads(line)["hash"] for line in lines]
    steps = [json.loads(line)["point"]["step"] for line in lines]
    assert steps.count(7) == 1  # neither saved nor evaluated: the loss alone, once
    assert len(hashes) - len(set(hashes)) == 1  # the goodput of step 12: saved, and at the end
    assert "Exported the moving average" in logs[0]
    assert "Exported" not in logs[1]
    for index, log in enumerate(logs):
        after = log.partition("Training from step 0 to 12")[2].splitlines()[1:]
        told = [line for line in after if "Saved step" in line]
        assert len(told) == 3
        assert all(line.startswith(f"[{index}/2] ") for line in told)


def test_a_death_in_mid_step_ends_all_and_changes_nothing(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    with start(tmp_path, workdir, special={1: {"die": 6}}) as processes:
        assert processes.codes() == [1, -signal.SIGKILL], processes.log(0)
        last = processes.log(0).splitlines()[-1]
        assert last.startswith("process 0 of 2 ends: process 1 (")
        assert "is gone: its connection broke. Give every process the same command" in last
    with start(tmp_path, workdir) as processes:
        processes.finish()
    assert_bitwise(workdir, undisturbed[0])


def test_a_preemption_of_one_host_stops_all_after_the_same_step(tmp_path):
    with start(tmp_path, tmp_path / "run", num_steps=10**6, checkpoint_every=10**6) as processes:
        processes.wait_for(1, "step 2")
        processes.signal(1, signal.SIGTERM)
        assert processes.codes() == [0, 0], processes.log(1)
        told = [processes.log(i).partition("SIGTERM: stopped after ")[2] for i in range(2)]
    assert told[0].split(" of ")[0] == told[1].split(" of ")[0]
    [step] = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert told[0].startswith(f"step {step} of 1000000 and saved")


MESHES = [
    (2, 4, {"fsdp": -1}),
    (4, 2, {"fsdp": -1}),
    (4, 2, {"replica": 2, "fsdp": 4}),
    (2, 4, {"replica": 2, "fsdp": 2, "tensor": 2}),
    (4, 2, {"fsdp": 2, "tensor": 4}),  # two processes hold, and need, the same rows
    (4, 2, {"fsdp": 1, "tensor": 8}),  # all need all rows
]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices", "mesh"), MESHES)
def test_any_mesh_over_processes_has_the_same_losses(alone, tmp_path, count, devices, mesh):
    run = start(tmp_path, tmp_path / "run", count, devices, mesh, eval_every=6)
    with run as processes:
        processes.finish()
    assert_same_losses(tmp_path / "run", alone[1])
    assert held_out_losses(tmp_path / "run") == pytest.approx(held_out_losses(alone[0]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(1, 4), (4, 4), (4, 1)])
def test_on_half_and_twice_the_devices_and_processes(alone, tmp_path, count, devices):
    """From two processes with four devices each."""
    workdir = tmp_path / "run"
    with start(tmp_path, workdir, 2, 4, num_steps=6) as processes:
        processes.finish()
    with start(tmp_path, workdir, count, devices) as processes:
        processes.finish()
        assert "Training from step 6 to 12" in processes.log(0)
    assert_same_losses(workdir, alone[1])


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1, 2])
def test_any_death_is_named_in_time(tmp_path, dies):
    special = {dies: {"die": 5}}
    with start(tmp_path, tmp_path / "run", 3, 2, batch_size=12, special=special) as processes:
        assert processes.end_of(dies) == -signal.SIGKILL
        began = time.monotonic()
        assert sorted(processes.codes()) == [-signal.SIGKILL, 1, 1]
        assert time.monotonic() - began < HEARTBEAT
        for index in {0, 1, 2} - {dies}:
            lines = processes.log(index).splitlines()
            if dies == 0:  # XLA loses the first process in the same moment, and has its say as well
                lines = [line for line in lines if line.startswith("process ")]
            assert lines[-1].startswith(f"process {index} of 3 ends: process {dies} (")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_and_restarted_is_bitwise_undisturbed(undisturbed, tmp_path, seed):
    """In a step, in a save, between: at a random time after a random step begins."""
    rng = random.Random(seed)
    workdir, killed = tmp_path / "run", rng.randrange(2)
    with start(tmp_path, workdir) as processes:
        processes.wait_for(killed, f"step {rng.randrange(3, 12)}")
        time.sleep(rng.random() * 0.2)  # not for an event: to be anywhere
        processes.signal(killed, signal.SIGKILL)
        codes = processes.codes()
        assert codes[killed] in (-signal.SIGKILL, 0)  # 0: it was done before
        assert codes[1 - killed] == (0 if codes[killed] == 0 else 1)
    with start(tmp_path, workdir) as processes:
        processes.finish()
    assert_bitwise(workdir, undisturbed[0])


@pytest.mark.slow
def test_a_process_that_only_stops_is_noticed(tmp_path):
    """Its machine still answers, so this is for XLA's heartbeats, half as long again."""
    with start(tmp_path, tmp_path / "run", num_steps=10**6) as processes:
        processes.wait_for(1, "step 5")
        processes.signal(1, signal.SIGSTOP)
        began = time.monotonic()
        assert processes.end_of(0) != 0
        assert time.monotonic() - began < 1.5 * HEARTBEAT + 15
        assert "unhealthy (stopped sending heartbeats):\n1\n" in processes.log(0)


@pytest.mark.slow
def test_a_process_may_compile_much_longer_than_another(alone, tmp_path):
    """Than the 30 seconds for which collectives on CPUs wait for all to begin."""
    with start(tmp_path, tmp_path / "run", special={1: {"trace": 35}}) as processes:
        processes.finish()
    assert_same_losses(tmp_path / "run", alone[1])


@pytest.mark.slow
@pytest.mark.parametrize("fails", [0, 1])
def test_a_failure_of_one_is_the_last_word_of_all(tmp_path, fails):
    with start(tmp_path, tmp_path / "run", special={fails: {"fail": 5}}) as processes:
        assert processes.codes() == [1, 1]
        for index in range(2):
            last = processes.log(index).splitlines()[-1]
            assert last == (
                f"process {index} of 2 ends: process {fails} failed: OSError: the disk is unplugged"
            )
        assert "Traceback" in processes.log(fails)
        assert "Traceback" not in processes.log(1 - fails)


@pytest.mark.slow
def test_bad_input_is_one_line(tmp_path):
    with start(tmp_path, tmp_path / "run", batch_size=15) as processes:
        assert processes.codes() == [1, 1]
        for index in range(2):
            assert "failed: toy: batch_size=15: must be a multiple" in processes.log(index)
            assert "Traceback" not in processes.log(index)


@pytest.mark.slow
def test_frozen_weights_that_differ_are_refused(tmp_path):
    with start(tmp_path, tmp_path / "run", special={1: {"weights": 1e-3}}) as processes:
        assert processes.codes() == [1, 1]
        for index in range(2):
            assert "the frozen weights of processes [1] differs" in processes.log(index)


@pytest.mark.slow
def test_sigterm_before_there_is_anything_to_save_is_an_end_like_any_other(tmp_path):
    with start(tmp_path, tmp_path / "run", special={1: {"dawdle": True}}) as processes:
        processes.wait_for(1, "joined")
        processes.signal(1, signal.SIGTERM)
        assert processes.codes() == [1, -signal.SIGTERM]
        assert processes.log(0).splitlines()[-1].startswith("process 0 of 2 ends: process 1 (")


@pytest.mark.slow
def test_ctrl_c_on_one_stops_all(tmp_path):
    with start(tmp_path, tmp_path / "run", num_steps=10**6, checkpoint_every=10**6) as processes:
        processes.wait_for(1, "step 2")
        processes.signal(1, signal.SIGINT)
        assert processes.codes() == [0, 130]
    assert len(Checkpoints(tmp_path / "run" / "checkpoints").steps()) == 1


@pytest.mark.slow
def test_what_several_wrote_is_known_file_by_file(undisturbed, tmp_path):
    """The manifest holds what both processes wrote, and misses none that is damaged."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    newest = workdir / "checkpoints" / "12"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    names = {str(path.relative_to(newest)) for path in files}
    for process in range(2):
        assert any(name.startswith(f"state/ocdbt.process_{process}/") for name in names)
    known = json.loads((newest / "integrity.json").read_text())["files"]
    unknown = {"integrity.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert set(known) == names - unknown
    for path in files:
        content = path.read_bytes()
        path.unlink()
        assert saved_state(workdir)[0] == 8
        path.write_bytes(content)
    assert saved_state(workdir)[0] == 12
