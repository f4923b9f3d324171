import json

import numpy as np
import pytest

from ldm_scaling.evaluation.captions import Caption, read_captions


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


@pytest.fixture
def coco(tmp_path):
    """Five images with two captions each; ids and order as mixed as COCO's."""
    images = [{"id": 7 * i, "file_name": f"image_{i}.jpg"} for i in range(5)]
    ids = np.random.default_rng(0).permutation(10)
    annotations = [
        {"id": int(n), "image_id": 7 * (place % 5), "caption": f" caption {n}\n"}
        for place, n in enumerate(ids)
    ]
    content = json.dumps({"images": images, "annotations": annotations})
    return write(tmp_path / "captions_val2014.json", content), ids


def test_coco_in_its_order(coco):
    path, ids = coco
    found = read_captions(path)
    assert [caption.id for caption in found] == ids.tolist()
    assert found[1] == Caption(int(ids[1]), f"caption {ids[1]}", "image_1.jpg")
    assert [c.id for c in read_captions(path, choice="first")] == ids[:5].tolist()
    assert [c.id for c in read_captions(path, count=3)] == ids[:3].tolist()


def test_mlperf_takes_one_caption_an_image_of_a_shuffled_table(coco):
    path, ids = coco
    found = read_captions(path, choice="mlperf", count=4, seed=1)
    order = np.random.RandomState(1).permutation(10)
    chosen, images = [], set()
    for place in order:
        if place % 5 not in images:
            images.add(place % 5)
            chosen.append(ids[place])
    assert [caption.id for caption in found] == sorted(chosen[:4])
    assert found != read_captions(path, choice="mlperf", count=4, seed=2)


def test_the_shuffle_is_that_of_pandas():
    # pandas 3.1: DataFrame({"n": range(202654)}).sample(frac=1, random_state=2023)["n"][:8]
    first = [116783, 68894, 76864, 90391, 166782, 159456, 174585, 183326]
    np.testing.assert_array_equal(np.random.RandomState(2023).permutation(202_654)[:8], first)


def test_other_formats(tmp_path):
    lines = write(tmp_path / "a.txt", "red apple\ncat “face”\n")
    assert read_captions(lines) == [Caption(0, "red apple"), Caption(1, "cat “face”")]
    table = write(tmp_path / "a.tsv", "id\tcaption\tfile_name\n5\tred apple\tx.jpg\n3\tcat\t\n")
    assert read_captions(table) == [Caption(5, "red apple", "x.jpg"), Caption(3, "cat")]
    comma = write(tmp_path / "a.csv", 'caption\n"red, apple"\ncat\n')
    assert read_captions(comma) == [Caption(0, "red, apple"), Caption(1, "cat")]
    entries = [
        {"file_name": "9.png", "reference": "x.png", "caption": "red apple", "id": 9},
        {"caption": "cat"},
    ]
    jsonl = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, entries)))
    assert read_captions(jsonl) == [Caption(9, "red apple", "x.png"), Caption(1, "cat")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "holds no caption"),
        ("a.txt", "one\n\nthree\n", "caption 2 is empty"),
        ("a.json", "[]", "not COCO captions"),
        ("a.json", '{"images": []}', "not COCO captions .KeyError: 'annotations'"),
        ("a.json", '{"torn', "not COCO captions .JSONDecodeError"),
        ("a.jsonl", '{"caption": "one"}\n{"torn', "line 2 is not JSON"),
        ("a.jsonl", '{"text": "one"}', "entry 1 has no caption"),
        ("a.tsv", "text\none\n", "entry 1 has no caption"),
        ("a.csv", "id,caption\nx,one\n", "entry 1 has id 'x', not a whole number"),
        ("a.csv", "id,caption\n4,one\n4,two\n", "caption 2 has id 4, as one before it"),
        ("a.csv", "id,caption\n-4,one\n", "caption 1 has id -4"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_captions(write(tmp_path / name, content))


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.txt: no such file"):
        read_captions(tmp_path / "a.txt")
    path = write(tmp_path / "a.txt", "one\n")
    with pytest.raises(ValueError, match="has 1 captions to choose, not count=2"):
        read_captions(path, count=2)
    with pytest.raises(ValueError, match="did you mean 'mlperf'"):
        read_captions(path, choice="mlperv")
