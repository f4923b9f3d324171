"""What the README sends people to, run whole: the notebook and the benchmark."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def test_the_notebook_runs():
    shown = []
    names = {"display": shown.append}
    cells = json.loads((ROOT / "colabs" / "sample.ipynb").read_text())["cells"]
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not source.startswith("%pip"):
            exec(compile(source, "sample.ipynb", "exec"), names)
    assert len(shown) == 4  # a picture for every width
    assert names["images"].shape == (4, 64, 64, 3)


def test_the_benchmark_compares_kernels(tmp_path):
    output = tmp_path / "rows.json"
    command = [sys.executable, ROOT / "launch" / "benchmark.py", f"--output={output}"]
    what = ["--what=sample", "--what=train", "--what=input", "--repeats=1"]
    subprocess.run([*command, *what], check=True)
    rows = json.loads(output.read_text())
    assert {row["way"] for row in rows} >= {"ldm_scaling", "Pillow decode", "tf.data"}
    assert all(row["seconds"] > 0 for row in rows)
    read = {(row["what"], row["way"]): row["seconds"] for row in rows if row["per_image"]}
    assert len(read) == 6
