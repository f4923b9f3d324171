"""Commands end with one line where their input is at fault, and with a traceback elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from ldm_scaling.launching import explained

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, ImportError])
def test_faults_of_the_input_are_one_line(error):
    with pytest.raises(SystemExit, match=r"^study: no such thing$"), explained("study"):
        raise error("no such thing")


def test_other_faults_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), explained("study"):
        _ = 1 / 0


def test_a_wrong_model_is_named_on_the_command_line(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "launch" / "sweep.py",
            f"--config={ROOT}/configs/study.py:micro",
            "--config.models=('micro-17',)",
            f"--workdir={tmp_path}",
            "--list",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "sweep: model='micro-17': neither a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_half_of_the_flags_that_tell_processes_apart_is_refused(tmp_path):
    command = [
        sys.executable,
        ROOT / "launch" / "train.py",
        f"--config={ROOT}/configs/pretrain.py:micro-8",
        f"--workdir={tmp_path}",
        "--num_processes=2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--coordinator is missing: give --coordinator, --num_processes and" in done.stderr
    assert "Traceback" not in done.stderr
