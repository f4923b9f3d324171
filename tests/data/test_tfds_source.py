"""TFDS data sets: any features, any split, clear errors, and never TensorFlow."""

import io
import json
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.data import DataError, Pipeline, open_source, random_caption
from ldm_scaling.data.tfds_source import find_prepared, packaged

COUNT = 10


def write_data_set(data_dir, name="tiny", file_format="array_record", dataset_name=None):
    """A prepared data set with awkward features, written without a builder."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "picture": tfds.features.Image(shape=(None, None, None)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64}),
            "score": tfds.features.Scalar(np.float32),
        }
    )
    features.save_config(str(folder))
    shard = folder / f"{name}-train.{file_format}-00000-of-00001"
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for i in range(COUNT):
        file = io.BytesIO()
        Image.new("L", (8, 8), 10 * i).save(file, "PNG")
        example = {
            "picture": io.BytesIO(file.getvalue()),
            "label": i % 2,
            "captions": [{"text": f"first {i}", "id": i}, {"text": f"second {i}", "id": i}],
            "score": i / 2,
        }
        writer.write(features.serialize_example(features.encode_example(example)))
    writer.close()
    info = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": file_format,
        "splits": [
            {
                "name": "train",
                "numBytes": "1",
                "shardLengths": [str(COUNT)],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    write_data_set(folder)
    write_data_set(folder, "rows", file_format="tfrecord")
    return folder


KEYS = {"image_key": "picture", "caption_key": "captions/text"}


def test_captions_inside_a_sequence(data_dir):
    source = open_source("tiny", data_dir=str(data_dir), **KEYS)
    assert len(source) == COUNT
    example = source[3]
    assert example["image"].shape == (8, 8, 3)
    assert (example["image"] == 30).all()
    assert example["caption"] == "first 3"
    assert example["captions"] == ["first 3", "second 3"]
    assert (example["example_id"], example["group"], example["score"]) == (3, "3", 1.5)


def test_one_of_several_captions_is_drawn(data_dir):
    source = open_source("tiny", data_dir=str(data_dir), **KEYS)
    batch = Pipeline(source, 4 * COUNT, seed=0, transform=random_caption).batch(0)
    assert {caption.split()[0] for caption in batch["caption"]} == {"first", "second"}


def test_class_labels_give_their_names(data_dir):
    source = open_source("tiny", data_dir=str(data_dir), image_key="picture", caption_key="label")
    assert [source[i]["caption"] for i in range(3)] == ["cat", "dog", "cat"]


def test_a_folder_and_a_part_of_a_split(data_dir):
    source = open_source(data_dir / "tiny" / "1.0.0", "train[50%:]", **KEYS)
    assert len(source) == COUNT // 2
    assert source[0]["caption"] == "first 5"


@pytest.mark.parametrize(
    ("name", "split", "options", "message"),
    [
        ("tiny", "train", {}, "image_key='image': tiny has .*picture"),
        ("tiny", "train", {**KEYS, "caption_key": "text"}, "caption_key='text': tiny has .*label"),
        ("tiny", "test", KEYS, "split='test': nothing there; tiny has train"),
        ("tiny", "train[:0]", KEYS, "nothing there"),
        ("rows", "train", KEYS, "tfrecord, which has no random access"),
        ("no_such_set", "train", {}, "name='no_such_set': neither a folder nor a TFDS data set"),
        ("noto_emojis", "train", {}, "near it: noto_emoji"),
        ("cifar10/none", "train", {}, "name='cifar10/none': .*BuilderConfig none not found"),
    ],
)
def test_bad_requests_are_named(data_dir, name, split, options, message):
    with pytest.raises(DataError, match=message):
        open_source(name, split, data_dir=str(data_dir), **options)


def test_a_set_that_is_not_prepared(tmp_path):
    with pytest.raises(DataError, match="tfds build mnist --file_format=array_record"):
        open_source("mnist", data_dir=str(tmp_path), caption_key="label")


def test_sources_travel_to_worker_processes(data_dir):
    source = open_source("tiny", data_dir=str(data_dir), **KEYS)
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7]["caption"] == source[7]["caption"]
    np.testing.assert_array_equal(copy[7]["image"], source[7]["image"])


def test_the_newest_version_of_a_folder_is_found(tmp_path):
    assert find_prepared(tmp_path) is None
    for name in ("1.9.0", "1.10.0", "1.2.0", "draft", "2.0.0rc1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_info.json").touch()
    (tmp_path / "3.0.0").mkdir()  # of which nothing was prepared
    assert find_prepared(tmp_path) == tmp_path / "1.10.0"
    assert find_prepared(tmp_path / "1.2.0") == tmp_path / "1.2.0"


def test_unknown_packaged_set():
    with pytest.raises(DataError, match="no such packaged data set"):
        packaged("none")


def test_reading_never_imports_tensorflow(data_dir):
    script = f"""
        import sys
        from ldm_scaling.data import Pipeline, image_transform, open_source

        for source in (
            open_source("noto_emoji"),
            open_source("tiny", data_dir={str(data_dir)!r}, **{KEYS!r}),
        ):
            iterator = Pipeline(source, 4, seed=0, transform=image_transform(8)).iterate()
            step, batch = next(iterator)
            iterator.close()
            print(batch["image"].shape)
        print("tensorflow" in sys.modules)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert run.stdout.split("\n")[:3] == ["(4, 8, 8, 3)"] * 2 + ["False"], run.stderr
