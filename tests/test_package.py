"""Importing is cheap, and the two commands refuse politely."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("jax", "tensorflow", "torch", "flax", "transformers", "matplotlib", "tensorflow_datasets")


def test_import_loads_nothing_heavy():
    code = (
        "import sys, ldm_scaling\n"
        "assert 'TextToImage' in dir(ldm_scaling), dir(ldm_scaling)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_the_face_does_not_load_tensorflow():
    code = (
        "import sys, ldm_scaling; ldm_scaling.TextToImage\n"
        "print([name for name in ('tensorflow', 'torch') if name in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def run_script(name: str, *args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["/bin/bash", ROOT / "launch" / name, *args],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
    )


def test_an_old_python_is_refused_with_advice(tmp_path):
    """With only an interpreter that fails the version check on PATH, nothing is installed."""
    for name in ("python", "python3", "python3.11", "python3.12", "python3.13"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    venv = tmp_path / "venv"
    for script in ("quickstart.sh", "test.sh"):
        done = run_script(
            script,
            *([str(tmp_path / "work")] if script == "quickstart.sh" else []),
            PATH=f"{tmp_path}:/usr/bin:/bin",
            LDM_SCALING_VENV=str(venv),
            LDM_SCALING_PYTHON=str(tmp_path / "python"),
        )
        assert "Python 3.11, 3.12 or 3.13" in done.stderr
        assert not venv.exists()


def test_scripts_explain_themselves():
    for script in (
        *("quickstart.sh", "test.sh", "micro_family.sh"),
        *("tpu_pod.sh", "local_pod.sh", "slurm.sh", "run_to_goal.sh"),
    ):
        done = run_script(script, "--help")
        assert done.returncode == 0
        assert f" launch/{script}" in done.stdout


def test_every_launcher_teaches():
    for path in sorted((ROOT / "launch").glob("*.py")):
        text = path.read_text()
        assert f"python launch/{path.name}" in text.split('"""')[1], f"{path.name}: no example"


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda path: path.name)
def test_every_launcher_starts(path):
    """Its flags are defined, each once, before anything of weight is imported."""
    done = subprocess.run(
        [sys.executable, path, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr  # absl's exit code of --help
    first = path.read_text().split('"""')[1].splitlines()[0]
    assert first in done.stdout
    assert "--" in done.stdout.partition(path.name)[2]
