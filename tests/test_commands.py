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


def test_the_benchmark_writes_what_it_measured(tmp_path):
    output = tmp_path / "rows.json"
    command = [sys.executable, ROOT / "launch" / "benchmark.py", f"--output={output}"]
    subprocess.run([*command, "--what=training", "--what=input", "--repeats=1"], check=True)
    rows = json.loads(output.read_text())
    assert {row["way"] for row in rows} >= {"ldm_scaling", "Pillow decode", "tf.data"}
    assert all(row["seconds"] > 0 for row in rows)
    read = {(row["what"], row["way"]): row["seconds"] for row in rows if row["per_image"]}
    assert len(read) == 6


@pytest.mark.parametrize("name", ["evaluation-64", "sampling", "inception", "clip"])
def test_the_sides_of_the_benchmark_compute_the_same(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "launch")
    from benchmarks import cases
    from benchmarks.all import CASES

    monkeypatch.setattr(cases, "STEPS", 2)
    case = CASES[name]
    baseline = next(iter(case.sides))
    for package in case.sides[baseline].needs:
        pytest.importorskip(package)
    case.prepare(tmp_path)
    theirs, ours = (case.sides[way].build(tmp_path)() for way in (baseline, "ldm_scaling"))
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    theirs = theirs[..., 0, 0] if name == "inception" else theirs
    theirs = np.moveaxis(theirs, 1, -1) if theirs.ndim == 4 else theirs
    assert np.abs(theirs - ours).max() <= 1e-4 * np.abs(theirs).max()


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


def test_a_pipeline_of_diffusers_is_drawn_scored_and_exported(tmp_path):
    """The README's commands for models of others, on a small one of random weights."""
    for name in ("torch", "diffusers", "transformers"):
        pytest.importorskip(name)
    (tmp_path / "captions.txt").write_text("red apple\ncat face\nrocket\n")

    def run(name, *flags):
        command = [sys.executable, ROOT / name, *flags]
        return subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)

    run("tests/make_pipeline.py", "small")
    drawing = ["--captions=captions.txt", "--steps=5", "--guidance=3"]
    run("launch/generate.py", "--model=small/sd2", *drawing, "--output=drawn")
    features = ["--reference=noto_emoji:test", "--features=lite0"]
    run("launch/eval_fid.py", "--samples=drawn", *features)
    run("launch/eval_clip.py", "--samples=drawn", "--model=small/clip")
    distance, clip = sorted(read_records(tmp_path / "scores.jsonl"), key=lambda r: r.kind)[::-1]
    assert set(distance.metrics) == {"fd_lite0_224", "kd_lite0_224"}
    assert abs(clip.metrics["clip_cosine"].value) <= 1
    assert distance.weights_hash == clip.weights_hash != ""
    run("launch/convert.py", "--source=small/sd2", "--output=back")
    import diffusers

    opened = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "back")
    before = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "small/sd2/unet")
    for name, tensor in before.state_dict().items():
        assert (opened.unet.state_dict()[name] == tensor).all(), name
