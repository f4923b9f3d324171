"""Distances between features of DINOv2, of files as transformers saves them; random weights."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from ldm_scaling import metrics
from ldm_scaling.checkpoint.diffusers import import_dinov2
from ldm_scaling.encoders import Dinov2
from ldm_scaling.evaluation import Dinov2Features
from ldm_scaling.evaluation.distances import distance_record
from ldm_scaling.records import read_records
from tests.golden_makers.dinov2 import SMALL, small_model, with_metas_positions

ROOT = Path(__file__).parent.parent.parent
SIZE = 32  # of 4 pixels a patch; there are positions for 20
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's


@pytest.fixture(scope="module")
def folder(tmp_path_factory, goldens):
    """A small DINOv2, drawn images of many sizes, and real ones of one."""
    root, rng = tmp_path_factory.mktemp("dinov2"), np.random.default_rng(0)
    (root / "model").mkdir()
    with np.load(goldens / "encoders_dinov2_mlp.npz") as file:
        state = {k.removeprefix("state/"): file[k] for k in file if k.startswith("state/")}
        (root / "model" / "config.json").write_text(str(file["config"]))
    safetensors.numpy.save_file(state, root / "model" / "model.safetensors", {"format": "pt"})
    for name, count, low in (("drawn", 40, 0), ("real", 36, 90)):
        (root / name).mkdir()
        for i in range(count):
            shape = (40 + i, 25, 3) if name == "drawn" else (36, 40, 3)
            image = rng.integers(low, 256, shape, dtype=np.uint8)
            Image.fromarray(image).save(root / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def network(folder):
    return Dinov2Features(*import_dinov2(folder / "model"), SIZE, batch_size=8)


def images_of(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def scaled(images):
    """Bicubic by Pillow, each channel in float, and normalised: [N, SIZE, SIZE, 3]."""
    found = []
    for image in images:
        channels = [
            Image.fromarray(channel) for channel in image.astype(np.float32).transpose(2, 0, 1)
        ]
        channels = [np.asarray(x.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for x in channels]
        found.append((np.stack(channels, -1).clip(0, 255) / 255 - MEAN) / STD)
    return np.stack(found).astype(np.float32)


def assert_near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_features_are_the_class_token_of_images_scaled_as_pillow_does(folder, network):
    config, params = import_dinov2(folder / "model")
    config = dataclasses.replace(config, position_offset=0.1)
    images = images_of(folder / "drawn")
    expected = jax.jit(Dinov2(config).apply)({"params": params}, scaled(images))[:, 0]
    assert_near(network(images), expected)
    real = images_of(folder / "real")
    assert_near(network(np.stack(real)), network(real))  # scaled on the device, and on the host


def test_a_record_names_numbers_after_the_network(folder, network, tmp_path):
    save = tmp_path / "real.npz"
    wanted = ("fid", "kid", "is", "prdc")
    record = distance_record(
        network,
        f"{folder}/drawn",
        f"{folder}/real",
        wanted,
        published=False,
        save_reference=save,
        resamples=20,
    )
    assert sorted(record.metrics) == [
        "coverage_dinov2_32_32", "density_dinov2_32_32", "fd_dinov2_32_32", "kd_dinov2_32_32",
        "precision_dinov2_32_32", "recall_dinov2_32_32",
    ]  # fmt: skip
    assert record.protocol["features"] == "dinov2_32_32"
    assert record.protocol["left_out"] == ["is"]
    assert not record.protocol["published_weights"]
    distance = record.metrics["fd_dinov2_32_32"]
    x, y = (network(images_of(folder / name)) for name in ("drawn", "real"))
    assert distance.value == pytest.approx(metrics.frechet_from_features(x, y), rel=1e-4)
    assert distance.low <= distance.value <= distance.high
    again = distance_record(network, f"{folder}/drawn", str(save), ["fid"])
    assert list(again.metrics) == ["fd_dinov2_32_32"]
    assert again.metrics["fd_dinov2_32_32"].value == pytest.approx(distance.value, rel=1e-6)
    same = distance_record(network, f"{folder}/real", f"{folder}/real", ["fid"])
    assert same.metrics["fd_dinov2_32_32"].value == pytest.approx(0, abs=1e-3)


def test_refusals(folder, network):
    config, params = import_dinov2(folder / "model")
    with pytest.raises(ValueError, match="size=30: must be a multiple of patch_size=4"):
        Dinov2Features(config, params, 30)
    with pytest.raises(ValueError, match="measured with inception_legacy, not dinov2_32_32"):
        distance_record(network, f"{folder}/drawn", f"{folder}/real", ["fid"], preset="mlperf")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of other people's packages
def test_the_distance_is_that_of_transformers_model_with_metas_positions(folder, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = small_model("Dinov2Model", SMALL)
    model.save_pretrained(tmp_path)
    with_metas_positions(model)
    ours, theirs = [], []
    network = Dinov2Features(*import_dinov2(tmp_path), SIZE, batch_size=8)
    for name in ("drawn", "real"):
        images = images_of(folder / name)
        ours.append(network(images))
        with torch.no_grad():
            planar = torch.from_numpy(scaled(images).transpose(0, 3, 1, 2).copy())
            theirs.append(model(planar).pooler_output.numpy())
        assert_near(ours[-1], theirs[-1])
    expected = metrics.frechet_from_features(*theirs)
    assert expected > 1
    assert metrics.frechet_from_features(*ours) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_command(folder, tmp_path):
    def run(*flags):
        command = [sys.executable, ROOT / "launch" / "eval_fid.py", "--features=dinov2", *flags]
        sets = (f"--samples={folder}/drawn", f"--reference={folder}/real", "--size=32")
        return subprocess.run(
            [*command, *sets], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    done = run(f"--weights={folder}/model")
    assert done.returncode == 0, done.stderr
    [record] = read_records(tmp_path / "scores.jsonl")
    assert sorted(record.metrics) == ["fd_dinov2_32_32", "kd_dinov2_32_32"]
    assert not record.protocol["published_weights"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2_with_registers"}))
    (tmp_path / "model.safetensors").write_bytes(
        (folder / "model" / "model.safetensors").read_bytes()
    )
    for flags, message in (
        ((), "weights: DINOv2 is read from a folder as transformers saves it"),
        ((f"--weights={tmp_path}/none",), "none': no such folder, and not 'owner/name'"),
        ((f"--weights={tmp_path}",), "model_type='dinov2_with_registers': only 'dinov2'"),
    ):
        done = run(*flags)
        assert done.returncode, flags
        assert message in done.stderr
        assert "Traceback" not in done.stderr
