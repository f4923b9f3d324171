"""The packaged Noto emoji: complete, split without leaks, and reproducible from its source."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.data import open_source
from ldm_scaling.data.noto_emoji import TEST_SHARE, split_keys
from ldm_scaling.data.splitting import in_test
from ldm_scaling.data.tfds_source import packaged

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def splits():
    sources = {split: open_source("noto_emoji", split) for split in ("train", "test")}
    return {split: [s[i] for i in range(len(s))] for split, s in sources.items()}


def test_every_emoji_is_there_once(splits):
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 3430,
        "test": 356,
    }
    ids = sorted(example["example_id"] for part in splits.values() for example in part)
    assert ids == list(range(3786))


def test_examples_hold_what_they_promise(splits):
    for example in splits["test"]:
        assert example["image"].shape == (64, 64, 3)
        assert example["image"].dtype == np.uint8
        assert example["caption"]
        assert all(isinstance(tag, str) for tag in example["tags"])
        assert isinstance(example["variant"], str)
    by_id = {example["example_id"]: example for part in splits.values() for example in part}
    assert by_id[0]["caption"] == "keycap: #"


@pytest.mark.parametrize("what", ["group", "image"])
def test_train_and_test_share_nothing(splits, what):
    def seen(part):
        return {np.asarray(example[what]).tobytes() for example in part}

    assert not seen(splits["train"]) & seen(splits["test"])


def test_a_tenth_of_the_groups_is_held_out(splits):
    groups = {split: len({e["group"] for e in part}) for split, part in splits.items()}
    assert sum(groups.values()) == 1911
    assert 0.08 < groups["test"] / 1911 < 0.12


def test_skin_tones_stay_with_their_base(splits):
    assert any(example["variant"] for example in splits["test"])
    for part in splits.values():
        bases = {example["group"] for example in part if not example["variant"]}
        assert bases == {example["group"] for example in part}


def test_files_are_small_and_attributed():
    folder = packaged("noto_emoji")
    assert all(file.stat().st_size < 20e6 for file in folder.iterdir())
    attribution = (folder.parent / "ATTRIBUTION.md").read_text()
    licenses = list(folder.parent.glob("LICENSE.*"))
    assert len(licenses) == 4
    assert all(f"`{file.name}`" in attribution for file in licenses)


def test_threads_read_what_one_thread_reads():
    source = open_source("noto_emoji", "test")
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: source[i % 40]["image"].tobytes(), range(400)))
    assert read == [source[i]["image"].tobytes() for i in range(40)] * 10


def test_groups_with_a_common_picture_move_together():
    pairs = [("b", b"1"), ("a", b"1"), ("c", b"2"), ("b", b"2"), ("d", b"3")]
    assert split_keys(pairs) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_split_is_a_fixed_hash():
    held_out = [key for key in map(str, range(60)) if in_test(key, TEST_SHARE)]
    assert held_out == ["9", "39", "49", "51", "55"]


@pytest.mark.slow
def test_launch_script_prepares_what_is_packaged(tmp_path):
    """Builds a small set end to end (TensorFlow writes it) and reads it back."""
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    lines = []
    for i in range(40):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(source / "images" / f"{i}.png")
        lines.append({"file": f"{i}.png", "caption": f"emoji {i}", "tags": ["t"] * (i % 3)})
        lines[-1] |= {"category": "c", "subcategory": "s", "group": str(i // 2), "variant": None}
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    command = [sys.executable, "launch/prepare_noto_emoji.py", f"--source={source}"]
    command += [f"--output={tmp_path / 'out'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=_environment())
    folder = tmp_path / "out" / "noto_emoji" / "1.0.0"
    examples = []
    for split in ("train", "test"):
        prepared = open_source(folder, split)
        examples += [(split, prepared[i]) for i in range(len(prepared))]
    assert sorted(example["example_id"] for _, example in examples) == list(range(40))
    for split, example in examples:
        assert (split == "test") == in_test(example["group"], TEST_SHARE)
        assert example["image"][0, 0, 0] == example["example_id"]


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
