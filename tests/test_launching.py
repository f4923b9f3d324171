"""Commands end with one line where their input is at fault, and with a traceback elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_scaling.launching import explained, progress

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


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def say_progress(workdir: Path, *others: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "progress.py", f"--workdir={workdir}", *others],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    return (done.stdout or done.stderr).strip(), done.returncode


def test_progress_is_told_from_the_files_of_a_run(tmp_path):
    assert str(progress(tmp_path)) == "step 0 of ?"

    write(tmp_path / "config.json", {"num_steps": 500, "optimizer": {"decay_steps": 9}})
    for name in ("200", "1000.being-written", "90"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    found = progress(tmp_path)
    assert (found.step, found.goal, found.finished) == (200, 500, False)

    # The last checkpoint is not the end: its result has yet to be exported.
    (tmp_path / "checkpoints" / "500").mkdir()
    assert not progress(tmp_path).finished
    write(tmp_path / "export" / "final" / "training.json", {"step": 500})
    assert progress(tmp_path).finished

    # The same run is given more steps.
    write(tmp_path / "config.json", {"num_steps": 800})
    assert not progress(tmp_path).finished


def test_progress_names_a_file_that_is_none_of_a_run(tmp_path):
    for content in ("{}", "nonsense", "[]", {"num_steps": None}):
        write(tmp_path / "config.json", content)
        with pytest.raises(ValueError, match=r"config\.json: no whole number under 'num_steps'"):
            progress(tmp_path)


def test_the_command_tells_launchers_by_its_exit_code(tmp_path):
    others = ("--config=configs/pretrain.py:768", "--config.num_steps=9", "--multihost=off")
    write(tmp_path / "config.json", {"num_steps": 9})
    assert say_progress(tmp_path, *others) == ("step 0 of 9", 3)
    write(tmp_path / "export" / "final" / "training.json", {"step": 9})
    assert say_progress(tmp_path, *others) == ("step 9 of 9", 0)
    write(tmp_path / "config.json", "nonsense")
    said, status = say_progress(tmp_path, *others)
    assert status == 1
    assert "progress: " in said
    assert "Traceback" not in said


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
