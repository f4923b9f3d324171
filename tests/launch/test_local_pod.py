"""launch/local_pod.sh: several processes that start, talk and end together."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = """
import os, pathlib, signal, sys, time
flags = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
index, folder = int(flags["process_id"]), pathlib.Path(__file__).parent
print("started", flush=True)
"""


def start(
    script: Path, code: str, *arguments: str, options: tuple = ("2",), **environment: str
) -> subprocess.Popen:
    script.write_text(HEADER + code)
    return subprocess.Popen(
        ["bash", ROOT / "launch" / "local_pod.sh", *options, script, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHON": sys.executable, "XLA_FLAGS": "", **environment},
    )


def finish(process: subprocess.Popen) -> tuple[int, list[str]]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.splitlines()


def wait_for_lines(process: subprocess.Popen, count: int) -> None:
    for _ in range(count):
        assert process.stdout.readline().endswith("started\n")


def alive(script: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"{sys.executable} {script}" in line:
            found.append(line)
    return found


def test_every_process_knows_its_place(tmp_path):
    code = """
print(flags, os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"])
sys.stdout.write("no newline at the end")
"""
    status, lines = finish(
        start(tmp_path / "script.py", code, "--name=it's a (name)", options=("3", "--devices=3"))
    )
    assert status == 0, lines
    assert len({re.search(r"127\.0\.0\.1:\d+", line)[0] for line in lines if "{" in line}) == 1
    for i in range(3):
        own = [line for line in lines if line.startswith(f"[{i}] ")]
        assert own[0] == f"[{i}] started"
        assert f"'num_processes': '3', 'process_id': '{i}'" in own[1]
        assert '''"it's a (name)"''' in own[1]
        assert "--xla_force_host_platform_device_count=3 cpu" in own[1]
        assert own[2] == f"[{i}] no newline at the end"


def test_one_that_fails_ends_all(tmp_path):
    script = tmp_path / "script.py"
    code = """
if index == 1:
    sys.exit(7)
def end(*_):
    print("asked to end", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
time.sleep(60)
"""
    status, lines = finish(start(script, code, options=("3",)))
    assert status == 7
    assert "local_pod: process 1 ended with exit code 7; ending the others" in lines
    assert alive(script) == []


def test_one_that_hangs_is_made_to_end(tmp_path):
    script = tmp_path / "script.py"
    code = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if index == 0:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    before = time.monotonic()
    status, lines = finish(start(script, code, LDM_SCALING_STOP_SECONDS="1"))
    assert status == 128 + signal.SIGKILL, lines
    assert time.monotonic() - before < 20
    assert alive(script) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all(tmp_path, number):
    script = tmp_path / "script.py"
    code = f"""
def end(number, frame):
    (folder / str(index)).write_text(str(number))
    sys.exit(0)
signal.signal({int(number)}, end)
print("started", flush=True)
time.sleep(60)
"""
    process = start(script, code)
    wait_for_lines(process, 4)
    os.killpg(process.pid, number)
    status, lines = finish(process)
    assert status == 0, lines
    assert [(tmp_path / str(i)).read_text() for i in range(2)] == [str(int(number))] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("launch/train.py",), "'launch/train.py': give the number of processes first"),
        (("0", "launch/train.py"), "'0': give the number of processes first"),
        (("2", "launch/no.py"), "'launch/no.py': give a script to run"),
        (("2", "--devices=x", "launch/train.py"), "--devices=x: at least 1"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message):
    done = subprocess.run(
        ["bash", ROOT / "launch" / "local_pod.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_processes_form_one_job(tmp_path):
    code = """
import jax
jax.distributed.initialize(flags["coordinator"], int(flags["num_processes"]), index)
mesh = jax.sharding.Mesh(jax.devices(), "x")
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
own = jax.numpy.full((2,), 10.0 ** index)
total = jax.jit(jax.numpy.sum)(jax.make_array_from_process_local_data(rows, own))
print("total", float(total), "of", jax.device_count(), "devices")
"""
    status, lines = finish(start(tmp_path / "script.py", code, options=("3", "--devices=2")))
    assert status == 0, lines
    totals = [line for line in lines if "total" in line]
    assert sorted(totals) == [f"[{i}] total 222.0 of 6 devices" for i in range(3)]


@pytest.mark.slow
def test_processes_share_the_encoding_of_a_source(tmp_path):
    output = subprocess.run(
        ["bash", ROOT / "launch" / "local_pod.sh", "2", "launch/precompute.py",
         "--config=configs/pretrain.py:micro-8", f"--output={tmp_path}", "--shard_examples=1024"],
        env={**os.environ, "PYTHON": sys.executable, "XLA_FLAGS": ""},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert output.returncode == 0, output.stdout[-2000:] + output.stderr[-2000:]
    said = output.stdout + output.stderr
    for index in (0, 1):  # of the 4 files of 3,430 emoji
        assert re.search(rf"^\[{index}\].*train: encoding 2 of 4 files", said, re.MULTILINE)
    assert len(list((tmp_path / "train").glob("encoded.array_record-*-of-00004"))) == 4
