"""Tables of captions with the images beside them."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldm_scaling.data import DataError
from ldm_scaling.data.captioned_images import Entry, find_shards
from ldm_scaling.data.captioned_images import parquet as module
from tests.data.captioned_images.sources import jpeg


def write(folder, name="00000.parquet", row_group_size=None, **columns):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / name, row_group_size=row_group_size)


def items(folder, **options):
    shards = find_shards(folder, max_bytes=10_000, **options)
    for shard in shards:
        numbered = [i.key for i in shard.entries() if isinstance(i, Entry) or i.numbered]
        assert list(shard.keys()) == numbered
    return [item for shard in shards for item in shard.entries()]


def test_the_layout_of_img2dataset(tmp_path):
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "00000" / "1.webp").write_bytes(jpeg(1))
    (tmp_path / "00000" / "5.jpg").write_bytes(bytes(10_001))
    write(
        tmp_path,
        key=["0", "1", "2", "3", "../4", "5", "6"],
        url=["http://example.org"] * 7,
        caption=["zero", "one", "two", "three", "four", "five", None],
        status=["success", "success", "failed_to_download", "success", *["success"] * 3],
        error_message=[None, None, "404", None, None, None, None],
        AESTHETIC_SCORE=[4.5, None, 1.0, 1.0, 1.0, 1.0, 1.0],
    )
    first, second, *others = items(tmp_path)
    assert (first.image, first.captions, first.score) == (jpeg(0), ("zero",), 4.5)
    assert (second.image, second.captions, second.score) == (jpeg(1), ("one",), None)
    assert [(item.reason, item.key) for item in others] == [
        ("not downloaded", "2"),
        ("no image", "3"),
        ("unsafe name", "../4"),
        ("too many bytes", "5"),
        ("no caption", "6"),
    ]
    assert others[0].detail == "404"
    assert "00000/3.jpg" in others[1].detail


def test_a_column_of_paths_and_named_fields(tmp_path):
    write(tmp_path, file_name=["a.jpg", "b.jpg"], alt=["A", "B"], status=["x", "y"], s=["1", "bad"])
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg())
    a, b = items(tmp_path, caption_field="alt", score_field="s")
    assert (a.key, a.captions, a.score) == ("a.jpg", ("A",), 1.0)
    assert (b.reason, b.detail) == ("bad metadata", "s='bad': not a number")


def test_shards_are_rows_of_a_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 3)
    monkeypatch.setattr(module, "_BATCH", 2)
    write(tmp_path, row_group_size=8, key=[str(i) for i in range(11)], caption=["c"] * 11)
    shards = find_shards(tmp_path, max_bytes=1)
    assert [shard.name for shard in shards] == [
        f"00000.parquet[{rows}]" for rows in ("0:0-3", "0:3-6", "0:6-8", "1:0-3")
    ]
    assert list(itertools.chain(*(shard.keys() for shard in shards))) == [str(i) for i in range(11)]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"key": ["a"], "words": ["b"]}, {}, "none of caption, captions.*columns are key, words"),
        ({"caption": ["a"]}, {}, "none of key, file_name.*columns are caption"),
        ({"key": ["a"], "caption": ["b"]}, {"caption_field": "c"}, "caption_field='c': the col"),
        ({"key": ["a"], "caption": ["b"]}, {"score_field": "s"}, "score_field='s': the columns"),
    ],
)
def test_missing_columns_are_named(tmp_path, columns, options, message):
    write(tmp_path, **columns)
    with pytest.raises(DataError, match=message):
        items(tmp_path, **options)


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"a\.parquet: not a parquet file"):
        items(tmp_path)
