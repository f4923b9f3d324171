"""Folders in the format of COCO."""

import itertools
import json

import pytest

from ldm_scaling.data import DataError
from ldm_scaling.data.captioned_images import coco, find_shards
from tests.data.captioned_images.sources import jpeg


def write(folder, part="train2017", images=(), annotations=()):
    (folder / "annotations").mkdir(exist_ok=True)
    content = {
        "images": [{"id": i, "file_name": name} for i, name in images],
        "annotations": [{"id": 0, "image_id": i, "caption": c} for i, c in annotations],
    }
    (folder / "annotations" / f"captions_{part}.json").write_text(json.dumps(content))


def items(folder):
    return [e for shard in find_shards(folder, max_bytes=10_000) for e in shard.entries()]


@pytest.mark.parametrize("place", ["train2017", "images/train2017", "images", "."])
def test_all_captions_of_an_image(tmp_path, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "7.jpg").write_bytes(jpeg())
    write(tmp_path, images=[(7, "7.jpg")], annotations=[(7, "one"), (9, "x"), (7, "two\n")])
    (entry,) = items(tmp_path)
    assert (entry.key, entry.captions, entry.image) == ("7.jpg", ("one", "two"), jpeg())


def test_the_annotations_decide_the_split(tmp_path):
    for part in ("train2017", "val2017", "mine"):
        write(tmp_path, part, [(1, f"{part}.jpg")], [(1, "caption")])
        (tmp_path / f"{part}.jpg").write_bytes(jpeg())
    found = {entry.key: entry.split for entry in items(tmp_path)}
    assert found == {"train2017.jpg": "train", "val2017.jpg": "test", "mine.jpg": ""}


def test_what_cannot_be_used_is_named(tmp_path):
    images = [(1, "gone.jpg"), (2, "/etc/passwd"), (3, "bare.jpg")]
    write(tmp_path, images=images, annotations=[(1, "a"), (2, "b"), (3, " ")])
    assert [(p.reason, p.key) for p in items(tmp_path)] == [
        ("no image", "gone.jpg"),
        ("unsafe name", "/etc/passwd"),
        ("no caption", "bare.jpg"),
    ]


def test_shards_hold_some_images_each(tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "IMAGES", 2)
    write(tmp_path, images=[(i, f"{i}.jpg") for i in range(5)])
    shards = find_shards(tmp_path, max_bytes=1)
    assert [shard.name.partition("[")[2] for shard in shards] == ["0-2]", "2-4]", "4-5]"]
    assert list(itertools.chain(*(shard.keys() for shard in shards))) == [
        f"{i}.jpg" for i in range(5)
    ]


@pytest.mark.parametrize(
    "text", ["torn {", "[]", '{"images": []}', '{"images": 1, "annotations": []}']
)
def test_annotations_that_are_none(tmp_path, text):
    write(tmp_path)
    (tmp_path / "annotations" / "captions_val.json").write_text(text)
    with pytest.raises(DataError, match=r"captions_val\.json: not COCO captions"):
        items(tmp_path)
