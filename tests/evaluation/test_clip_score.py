"""CLIP score of a folder of images, with a small CLIP of random weights in transformers files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants
from PIL import Image

from ldm_scaling import metrics
from ldm_scaling.evaluation.clip_score import ClipEmbedder, central_square, clip_record
from ldm_scaling.evaluation.image_sets import open_images
from ldm_scaling.records import read_records
from tests.checkpoint.hub_cache import write_snapshot
from tests.encoders.vocabularies import write_clip
from tests.train.processes import Processes

RNG = np.random.default_rng(0)
CAPTIONS = ["a", "red apple", "cat face: grin", "b"]


def write_model(folder, goldens):
    """What `CLIPModel.save_pretrained` and its tokenizer write; weights of the golden."""
    with np.load(goldens / "encoders_clip_whole.npz") as file:
        config = json.loads(str(file["config"]))
        state = {k.removeprefix("state/"): v for k, v in file.items() if k.startswith("state/")}
    table = state["text_model.embeddings.token_embedding.weight"]
    # The golden knows a few tokens; a tokenizer of bytes needs 514, and 77 places.
    text = {**config["text_config"], "vocab_size": 514, "max_position_embeddings": 77,
            "bos_token_id": 512, "eos_token_id": 513}  # fmt: skip
    for name, rows in (("token", 514), ("position", 77)):
        size = (rows, table.shape[1])
        state[f"text_model.embeddings.{name}_embedding.weight"] = RNG.normal(size=size).astype("f2")
    folder.mkdir()
    safetensors.numpy.save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "clip", **config, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    write_clip(folder, [], "<|endoftext|>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, goldens):
    root = tmp_path_factory.mktemp("clip")
    write_model(root / "model", goldens)
    (root / "drawn").mkdir()
    lines = []
    for i, caption in enumerate(CAPTIONS):
        image = RNG.integers(0, 256, (20 + i, 31, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "drawn" / f"{i:012d}.png")
        lines.append(json.dumps({"file_name": f"{i:012d}.png", "caption": caption, "id": i}))
    (root / "drawn" / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def embedder(folders):
    return ClipEmbedder.from_folder(folders / "model", batch_size=3)


def test_numbers_are_the_cosines_of_image_and_caption(folders, embedder):
    record = clip_record(embedder, folders / "drawn", reference=f"{folders}/drawn")
    images, texts = embedder.images(open_images(folders / "drawn")), embedder.texts(CAPTIONS)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-6)
    cosines = (images * texts).sum(axis=1)
    assert np.ptp(cosines) > 0.01
    found = record.metrics
    cosine = found["clip_cosine"]
    assert cosine.value == pytest.approx(cosines.mean(), abs=1e-6)
    assert cosine.low < cosine.value < cosine.high
    assert found["clip_score_torchmetrics"].value == pytest.approx(100 * max(cosines.mean(), 0))
    expected = 2.5 * np.maximum(cosines, 0).mean()
    assert found["clip_score_w25"].value == pytest.approx(expected, abs=1e-6)
    assert found["cmmd"].value == pytest.approx(metrics.cmmd(images, images), abs=1e-9)
    assert (record.num_samples, record.protocol["model"]) == (4, "model")


def test_neither_order_nor_batch_changes_the_score(folders, embedder, tmp_path):
    once = clip_record(embedder, folders / "drawn", resamples=0).metrics["clip_cosine"].value
    rows = [{"id": i, "caption": CAPTIONS[i]} for i in (2, 0, 3, 1)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = ClipEmbedder.from_folder(folders / "model", batch_size=4)
    again = clip_record(other, folders / "drawn", tmp_path / "a.jsonl", resamples=0)
    assert again.metrics["clip_cosine"].value == pytest.approx(once, abs=1e-6)


def test_images_of_the_wrong_captions_score_otherwise(folders, embedder, tmp_path):
    once = clip_record(embedder, folders / "drawn", resamples=0)
    (tmp_path / "a.txt").write_text("\n".join(CAPTIONS[::-1]))
    swapped = clip_record(embedder, folders / "drawn", tmp_path / "a.txt", resamples=0)
    name = "clip_cosine"
    assert abs(once.metrics[name].value - swapped.metrics[name].value) > 1e-3


def test_a_model_of_the_hub_goes_by_its_name(folders, embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    write_snapshot(tmp_path, "owner/some-clip", folders / "model")
    found = ClipEmbedder.from_folder("owner/some-clip")
    assert found.name == "some-clip"
    np.testing.assert_allclose(found.texts(CAPTIONS), embedder.texts(CAPTIONS), atol=1e-6)
    with pytest.raises(FileNotFoundError, match="model='nowhere': no such folder, and not 'owner/"):
        ClipEmbedder.from_folder("nowhere")


def test_a_missing_image_is_named(folders, embedder, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join([*CAPTIONS, "one more"]))
    with pytest.raises(ValueError, match=r"1 of 5 captions have no image .* 000000000004\.png"):
        clip_record(embedder, folders / "drawn", tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"metadata\.jsonl: no such file"):
        clip_record(embedder, tmp_path)


def test_the_command_adds_the_same_record(folders, embedder, tmp_path):
    drawn, output = folders / "drawn", tmp_path / "scores.jsonl"
    flags = {"samples": drawn, "model": folders / "model", "reference": drawn, "preset": "mlperf"}
    flags = {**flags, "batch_size": 8, "output": output}
    command = [sys.executable, Path(__file__).parents[2] / "launch" / "eval_clip.py"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"4 images; a record was added to {output}" in done.stdout
    [record] = read_records(output)
    expected = clip_record(embedder, drawn, reference=str(drawn), preset="mlperf")
    assert record.protocol == expected.protocol
    assert record.metrics.keys() == expected.metrics.keys()
    for name, metric in expected.metrics.items():
        assert name in done.stdout
        assert record.metrics[name].value == pytest.approx(metric.value, abs=1e-5), name


@pytest.mark.slow
def test_processes_share_the_images_and_agree_with_one(folders, embedder, tmp_path):
    drawn, output = folders / "drawn", tmp_path / "scores.jsonl"
    flags = {"samples": drawn, "model": folders / "model", "reference": drawn, "output": output}
    command = [Path(__file__).parents[2] / "launch" / "eval_clip.py"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    with Processes(tmp_path / "logs", 3, 1, {}, command=command) as processes:
        processes.finish()
    [record] = read_records(output)
    expected = clip_record(embedder, drawn, reference=str(drawn))
    assert record.protocol == expected.protocol
    for name, metric in expected.metrics.items():
        assert record.metrics[name].value == pytest.approx(metric.value, rel=1e-6, abs=1e-6), name


def test_a_preset_is_known_and_says_what_was_asked_for(folders, embedder):
    record = clip_record(embedder, folders / "drawn", resamples=0, preset="mosaicml")
    assert record.protocol["preset_clip"] == "CLIP ViT-B/16 (OpenAI)"
    assert record.protocol["published"] in record.metrics
    with pytest.raises(ValueError, match="did you mean 'mlperf'"):
        clip_record(embedder, folders / "drawn", preset="mlperv")


def test_the_middle_is_cut_from_the_scaled_image():
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, 15:25] = 255  # the middle square
    np.testing.assert_array_equal(central_square(image, 10), image[:, 15:25])
    assert central_square(image, 5).shape == (5, 5, 3)
    assert central_square(image[:, :7], 5).shape == (5, 5, 3)
    square = RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(central_square(square, 6), square)


@pytest.mark.slow
def test_embeddings_are_those_of_transformers_from_the_files_alone(folders, embedder):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = folders / "model"
    model = transformers.CLIPModel.from_pretrained(folder).float().eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    size = model.config.vision_config.image_size
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    images = [Image.open(path) for path in sorted((folders / "drawn").glob("*.png"))]
    tokens = tokenizer(
        CAPTIONS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(**tokens, **processor(images, return_tensors="pt"))
    found = embedder.images(open_images(folders / "drawn"))
    np.testing.assert_allclose(found, output.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(embedder.texts(CAPTIONS), output.text_embeds.numpy(), atol=1e-5)
