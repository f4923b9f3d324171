"""What the README sends people to, run whole: the notebook and the benchmark."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.evaluation.pictures import LABEL_HEIGHT, MARGIN
from ldm_scaling.records import read_records

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


def test_a_packaged_model_is_drawn_scored_and_converted(tmp_path):
    """The commands of "the world's models" that need no download, and what they leave behind."""
    (tmp_path / "captions.txt").write_text("red apple\ncat face\nrocket\n")

    def run(name, *flags):
        command = [sys.executable, ROOT / "launch" / f"{name}.py", *flags]
        return subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)

    drawing = ["--captions=captions.txt", "--steps=10", "--guidance=2.5", "--batch_size=8"]
    for _ in range(2):  # the second time nothing is left to draw
        run("generate", "--model=micro-8", *drawing, "--output=drawn")
    again = run("generate", "--model=micro-8", *drawing, "--output=drawn")
    assert again.stdout.startswith("0 images drawn, 3 in all")
    run("eval_fid", "--samples=drawn", "--reference=noto_emoji:test", "--features=lite0")
    [record] = read_records(tmp_path / "scores.jsonl")
    assert sorted(record.metrics) == ["fd_lite0_224", "kd_lite0_224"]
    assert record.num_samples == 3
    run("convert", "--source=micro-8", "--output=converted")
    spread = ["--mesh.replica=1", "--mesh.fsdp=8"]
    run("generate", "--model=converted", *drawing, *spread, "--output=other")
    for path in sorted((tmp_path / "drawn").glob("*.png")):
        one, other = (np.asarray(Image.open(folder / path.name), int)
                      for folder in (path.parent, tmp_path / "other"))  # fmt: skip
        assert np.abs(one - other).max() <= 1
    run("sample", "--model=converted", "--prompt=rocket", "--count=2", "--steps=2", *spread)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (2 * (64 + MARGIN) + MARGIN, 64 + LABEL_HEIGHT + 2 * MARGIN)
