"""Which processes join, and with what words bad flags are refused."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from absl import flags

from ldm_scaling.hosts import joining

ROOT = Path(__file__).parents[2]
EXPLICIT = {"coordinator": "10.0.0.2:8476", "num_processes": 4, "process_id": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinator": None}, "--coordinator is missing: give .* all three or none"),
        ({"num_processes": None}, "--num_processes is missing"),
        ({"process_id": None}, "--process_id is missing"),
        ({"coordinator": "10.0.0.2"}, "--coordinator=10.0.0.2: give HOST:PORT"),
        ({"coordinator": ":80"}, "--coordinator=:80: give HOST:PORT"),
        ({"coordinator": "host:http"}, "--coordinator=host:http: give HOST:PORT"),
        ({"num_processes": 0}, "--num_processes=0: must be at least 1"),
        ({"process_id": 4}, r"--process_id=4: must lie in 0 \.\. 3, as there are --num_proc"),
        ({"process_id": -1}, r"--process_id=-1: must lie in 0 \.\. 3"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        joining.check_processes(**{**EXPLICIT, **changes})


def test_all_or_none_is_right():
    joining.check_processes(**EXPLICIT)
    joining.check_processes(None, None, None)
    joining.check_processes("[::1]:80", 1, 0)


def parse(*arguments):
    values = flags.FlagValues()
    joining.define_flags(values)
    values(["command", *arguments])
    return values


def test_flags_are_checked_where_they_are_parsed():
    assert parse("--coordinator=h:1", "--num_processes=2", "--process_id=1").process_id == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process_id=1"], "--coordinator is missing"),
        (
            ["--multihost=off", "--coordinator=h:1", "--num_processes=2", "--process_id=1"],
            "--multihost=off contradicts --coordinator",
        ),
        (["--multihost=on"], "multihost"),
        (["--heartbeat_timeout_seconds=1"], "heartbeat_timeout_seconds"),
    ],
)
def test_bad_flags_are_refused(arguments, message):
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    ("environment", "alone"),
    [
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, True),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False),  # JAX finds out the rest
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),  # a notebook's pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "TPU_WORKER_HOSTNAMES": "a,b"}, False),
        ({}, False),
    ],
)
def test_single_processes_in_clusters_are_told_apart(environment, alone):
    assert joining._surely_alone(environment) == alone


def test_an_indexed_job_without_its_package_is_no_single_process():
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
    with pytest.raises(ValueError, match=r"pip install 'jax\[k8s\]', or give --coordinator"):
        joining._surely_alone(environment)


def join_alone(**environment):
    """What `join` does in a process that has nothing but its environment."""
    code = "from ldm_scaling.hosts.joining import join; print(join(), __import__('jax').devices())"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_machine_without_a_cluster_is_one_process():
    assert join_alone().stdout.strip() == "None [CpuDevice(id=0)]"


def test_a_cluster_that_says_half_is_refused():
    done = join_alone(JAX_COORDINATOR_ADDRESS="127.0.0.1:9")
    assert done.returncode == 1
    assert "Number of processes must be defined" in done.stderr


def test_a_cluster_of_one_is_one_process():
    """As JAX finds it on a TPU VM of its own; SLURM's variables stand for the metadata here."""
    done = join_alone(
        SLURM_JOB_ID="4", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="01",
        SLURM_PROCID="0", SLURM_LOCALID="0",
    )  # fmt: skip
    assert done.stdout.strip() == "None [CpuDevice(id=0)]", done.stderr


def test_a_first_process_out_of_reach_is_named(monkeypatch, capfd):
    """By leaving at once: JAX would wait, at exit, for processes that wait for this one."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        client = SimpleNamespace(blocking_key_value_get=lambda key, timeout: f"{port} token")
        state = SimpleNamespace(
            process_id=1, num_processes=2, client=client, coordinator_address="127.0.0.1:9"
        )
        monkeypatch.setattr(os, "_exit", sys.exit)
        with pytest.raises(SystemExit) as end:
            joining._watch(state, 4)
    assert end.value.code == 1
    said = capfd.readouterr().err
    assert f"process 1 of 2 ends: it cannot reach process 0 at 127.0.0.1:{port} (" in said
    assert "must reach each other at every port" in said


def test_errors_of_collectives_are_told_from_others():
    """They may be the death of another process, as the watch will say; others are this one's."""

    def wrapped(error):
        try:
            try:
                raise error
            except Exception as inner:
                raise RuntimeError("step 5 could not be saved") from inner
        except RuntimeError as outer:
            return outer

    lost = jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection closed by peer")
    assert joining._is_of_xla(lost)
    assert joining._is_of_xla(wrapped(lost))
    assert not joining._is_of_xla(wrapped(OSError("No space left on device")))
    assert not joining._is_of_xla(None)
