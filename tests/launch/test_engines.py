"""The same job on other engines: launch/slurm.sh, launch/run_to_goal.sh, launch/gke_jobset.yaml."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Counts to the goal; where asked for, it is interrupted at a step, or fails.
TRAIN = """
import json, os, pathlib, signal, sys, time
flags = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
workdir, goal = pathlib.Path(flags["workdir"]), int(flags["config.num_steps"])
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
if goal < 1:
    sys.exit(9)
(workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
(workdir / "config.json").write_text(json.dumps({"num_steps": goal}))
step = max([0, *(int(path.name) for path in (workdir / "checkpoints").iterdir())])
while step < goal and not stopping:
    time.sleep(float(flags.get("config.seconds", 0)))
    step += 1
    (workdir / "checkpoints" / str(step)).mkdir()
    if step == int(flags.get("config.until", goal)) and not (workdir / "again").exists():
        (workdir / "again").touch()
        break
if step == goal:
    (workdir / "export" / "final").mkdir(parents=True)
    (workdir / "export" / "final" / "training.json").write_text(json.dumps({"step": step}))
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the real scripts, a made-up training, and SLURM's commands."""
    launch = tmp_path / "checkout" / "launch"
    launch.mkdir(parents=True)
    for name in ("slurm.sh", "run_to_goal.sh", "environment.sh", "progress.py"):
        (launch / name).write_text((ROOT / "launch" / name).read_text())
    (launch / "train.py").write_text(TRAIN)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    # srun starts what it is given on every node; here, once.
    (bin_ / "srun").write_text('#!/bin/sh\necho "srun $1" >>calls\nshift\nexec "$@"\n')
    (bin_ / "scontrol").write_text('#!/bin/sh\necho "scontrol $*" >>calls\n')
    for path in bin_.iterdir():
        path.chmod(0o755)
    return tmp_path / "checkout"


def environment(checkout: Path, **more: str) -> dict[str, str]:
    path = f"{checkout.parent}/bin:/usr/bin:/bin"
    return {"PATH": path, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **more}


def run(checkout: Path, script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", checkout / "launch" / script, *arguments],
        env=environment(checkout, **more),
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )


def job(checkout: Path, *arguments: str) -> tuple[int, str]:
    """A SLURM job: its exit code, and the commands of SLURM that it gave."""
    (checkout / "calls").write_text("")
    done = run(checkout, "slurm.sh", *arguments, SLURM_JOB_ID="42", SLURM_SUBMIT_DIR=str(checkout))
    return done.returncode, (checkout / "calls").read_text()


def test_a_slurm_job_comes_back_until_its_last_step(checkout):
    arguments = ("--workdir=run it", "--config.num_steps=5", "--config.until=2")
    started = "srun --kill-on-bad-exit=1\n"
    assert job(checkout, *arguments) == (0, started + "scontrol requeue 42\n")
    assert job(checkout, *arguments) == (0, started)
    assert sorted(os.listdir(checkout / "run it" / "checkpoints")) == list("12345")


def test_a_slurm_job_that_fails_does_not_come_back(checkout):
    assert job(checkout, "--workdir=run", "--config.num_steps=0") == (
        9,
        "srun --kill-on-bad-exit=1\n",
    )


def test_slurm_is_told_to_warn_training_and_to_let_the_job_come_back():
    text = (ROOT / "launch" / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.M))
    assert re.fullmatch(r"TERM@\d+", options["signal"])  # without B: to training, not to the script
    assert "requeue" in options
    assert options["open-mode"] == "append"
    assert options["ntasks-per-node"] == options["gpus-per-node"]


def test_the_slurm_script_outside_of_a_job_says_how_to_submit_it(checkout):
    done = run(checkout, "slurm.sh", "--workdir=run")
    assert done.returncode == 2
    assert "sbatch launch/slurm.sh" in done.stderr


def test_run_to_goal_tells_an_interruption_from_the_end(checkout):
    arguments = ("--workdir=run", "--config.num_steps=5", "--config.until=2")
    assert run(checkout, "run_to_goal.sh", *arguments).returncode == 3
    done = run(checkout, "run_to_goal.sh", *arguments)
    assert done.returncode == 0
    assert "step 5 of 5" in done.stdout
    assert run(checkout, "run_to_goal.sh", "--workdir=x", "--config.num_steps=0").returncode == 9


def test_run_to_goal_hands_the_signal_on(checkout):
    process = subprocess.Popen(
        [
            *("bash", checkout / "launch" / "run_to_goal.sh"),
            *("--workdir=run", "--config.num_steps=9999", "--config.seconds=0.01"),
        ],
        env=environment(checkout),
        cwd=checkout,
    )
    deadline = time.monotonic() + 20
    while not (checkout / "run" / "checkpoints" / "3").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 3


def preferred(folder: Path, already: str = "") -> str:
    script = f'source launch/environment.sh; prefer_tcmalloc {folder}; printf "${{LD_PRELOAD:-}}"'
    variables = {"PATH": "/usr/bin:/bin", **({"LD_PRELOAD": already} if already else {})}
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, check=True)
    return done.stdout.decode()


def test_tcmalloc_is_chosen_where_it_is_and_nothing_was_chosen(tmp_path):
    assert preferred(tmp_path) == ""
    (tmp_path / "libtcmalloc.so.4").touch()
    assert preferred(tmp_path) == f"{tmp_path}/libtcmalloc.so.4"
    (tmp_path / "libtcmalloc_minimal.so.4").touch()
    assert preferred(tmp_path) == f"{tmp_path}/libtcmalloc_minimal.so.4"
    assert preferred(tmp_path, already="libc.so.6") == "libc.so.6"
