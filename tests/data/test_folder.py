"""Folders: conventions understood, damage named, skipped and counted."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.data import DataError, FolderSource, Pipeline, open_source

GOOD = 12


def write_folder(folder, count=GOOD, *, metadata="metadata.jsonl", keys=("file_name", "caption")):
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
        lines.append({keys[0]: f"{i}.png", keys[1]: f"picture {i}"})
    write_lines(folder, lines, metadata)
    return folder


def write_lines(folder, lines, metadata="metadata.jsonl"):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / metadata).write_text(text)


def add_line(folder, line, metadata="metadata.jsonl"):
    with (folder / metadata).open("a") as file:
        file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")


@pytest.mark.parametrize("metadata", ["metadata.jsonl", "captions.jsonl"])
@pytest.mark.parametrize("keys", [("file_name", "caption"), ("file", "text")])
def test_conventions(tmp_path, metadata, keys):
    source = open_source(write_folder(tmp_path, metadata=metadata, keys=keys))
    assert len(source) == GOOD
    example = source[3]
    assert example["image"][0, 0].tolist() == [3, 0, 0]
    image_free = {key: value for key, value in example.items() if key != "image"}
    assert image_free == {
        "caption": "picture 3",
        "example_id": 3,
        "group": "3.png",
        "file": "3.png",
    }


def test_images_subfolder_group_and_id(tmp_path):
    write_folder(tmp_path / "images", 1)
    write_lines(tmp_path, [{"file": "0.png", "text": "t", "group": "g", "example_id": 77}])
    example = FolderSource(tmp_path)[0]
    assert (example["group"], example["example_id"]) == ("g", 77)


def test_splits_are_subfolders(tmp_path):
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "test", 3)
    assert [len(FolderSource(tmp_path, split)) for split in ("train", "test")] == [5, 3]


def test_a_folder_without_splits_has_no_test_split(tmp_path):
    write_folder(tmp_path)
    assert len(FolderSource(tmp_path, "all")) == GOOD
    with pytest.raises(DataError, match=r"split='test' needs .*test.metadata\.jsonl"):
        FolderSource(tmp_path, "test")


def test_runs_through_the_pipeline(tmp_path):
    batch = Pipeline(open_source(write_folder(tmp_path)), 4, seed=0).batch(0)
    assert batch["image"].shape == (4, 8, 8, 3)
    assert set(batch) == {"image", "caption", "example_id", "group", "file"}


def spoil(folder):
    """Adds one bad entry of each kind; returns how each is named."""
    (folder / "torn.png").write_bytes((folder / "1.png").read_bytes()[:50])
    (folder / "page.png").write_text("<html>")
    Image.new("1", (3000, 3000)).save(folder / "bomb.png")
    lines = [
        {"file_name": "torn.png", "caption": "c"},
        {"file_name": "page.png", "caption": "c"},
        {"file_name": "bomb.png", "caption": "c"},
        {"file_name": "missing.png", "caption": "c"},
        {"file_name": "../outside.png", "caption": "c"},
        {"file_name": "0.png"},
        {"caption": "c"},
        {"file_name": "0.png", "caption": "c", "example_id": 2},
        {"file_name": "0.png", "caption": "c", "example_id": -1},
        ["0.png", "c"],
        '{"file_name": "0.png", "capt',
    ]
    for line in lines:
        add_line(folder, line)
    files = ["torn.png", "page.png", "bomb.png", "missing.png"]
    return {*files, *(f"metadata.jsonl:{n}" for n in range(GOOD + 5, GOOD + 12))}


def test_bad_entries_are_named_skipped_and_counted(tmp_path, caplog):
    named = spoil(write_folder(tmp_path))
    logging.getLogger("absl").propagate = True
    with caplog.at_level(logging.WARNING):
        source = FolderSource(tmp_path, max_bad_share=0.5, max_pixels=10**6)
    assert {name for name, _ in source.skipped} == named
    assert all(why for _, why in source.skipped)
    assert [source[i]["example_id"] for i in range(len(source))] == list(range(GOOD))
    assert all(f"skipped {name}: " in caplog.text for name in named)
    assert "11 of 23 entries are bad" in caplog.text


def test_more_than_the_allowed_share_stops(tmp_path):
    spoil(write_folder(tmp_path))
    with pytest.raises(DataError, match=r"11 of 23 entries are bad.*max_bad_share=0\.01.*first: "):
        FolderSource(tmp_path, max_pixels=10**6)


def test_ids_do_not_move_when_an_image_breaks(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "4.png").write_bytes(b"broken")
    source = FolderSource(tmp_path, max_bad_share=0.1)
    pairs = [(source[i]["example_id"], source[i]["file"]) for i in range(len(source))]
    assert pairs == [(i, f"{i}.png") for i in range(GOOD) if i != 4]


def test_scan_cache_resumes_and_notices_changes(tmp_path, monkeypatch):
    from ldm_scaling.data import folder as module

    write_folder(tmp_path / "data")
    (tmp_path / "data" / "4.png").write_bytes(b"broken")
    cache = tmp_path / "scan.jsonl"
    decoded = []
    original = module.decode_rgb
    monkeypatch.setattr(
        module, "decode_rgb", lambda path, limit: decoded.append(path.name) or original(path, limit)
    )

    def scan():
        decoded.clear()
        source = FolderSource(tmp_path / "data", max_bad_share=0.1, scan_cache=cache)
        return [name for name, _ in source.skipped], len(decoded)

    assert scan() == (["4.png"], GOOD)
    assert scan() == (["4.png"], 0)
    # Killed in the middle of a line: what was scanned before it is not scanned again.
    lines = cache.read_bytes().splitlines(keepends=True)
    cache.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    assert scan() == (["4.png"], GOOD - 7)
    assert scan() == (["4.png"], 0)
    Image.new("RGB", (9, 9)).save(tmp_path / "data" / "4.png")
    assert scan() == ([], 1)


def test_an_image_that_vanishes_later_is_named(tmp_path):
    source = FolderSource(write_folder(tmp_path))
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png: no such file; it was whole"):
        source[2]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "needs .*metadata.jsonl or .*captions.jsonl"),
        (lambda folder: write_lines(folder, []), "names no image"),
        (lambda folder: write_lines(folder, ["no json"]), "1 of 1 entries are bad"),
    ],
)
def test_useless_folders_are_refused(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path, max_bad_share=1.0)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_source(tmp_path / "none")
    with pytest.raises(ValueError, match=r"max_bad_share=2\.0"):
        FolderSource(tmp_path, max_bad_share=2.0)


def test_images_of_any_mode_are_rgb(tmp_path):
    write_folder(tmp_path, 1)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "clear.png")
    for name in ("deep.png", "clear.png"):
        add_line(tmp_path, {"file_name": name, "caption": name})
    source = FolderSource(tmp_path)
    assert [source[i]["image"].shape for i in range(3)] == [(8, 8, 3)] * 3
    assert (source[2]["image"] == 255).all()
