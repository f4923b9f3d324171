"""Encoded sets: what was stored is read back, in any order, and damage is named."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ldm_scaling.data import ArraySource, DataError, EncodedSource, Encoding, Pipeline, Source
from ldm_scaling.data.encoded import write_shard
from ldm_scaling.data.source import GatherSource

N, SHARD = 11, 4


def examples():
    rng = np.random.default_rng(0)
    return [
        {
            "latent_mean": rng.normal(size=(2, 2, 3)).astype(np.float32),
            "context": rng.normal(size=(5, 4)).astype(np.float32),
            "caption": f"№ {i}" * (i % 3),  # some are empty
            "example_id": 10 + i,
        }
        for i in range(N)
    ]


def write(folder, dtype="float32", leave_out=()):
    encoding = Encoding({"made_by": "test"}, N, SHARD, dtype, {})
    encoding.save(folder)
    for shard in set(range(encoding.shards)) - set(leave_out):
        start, stop = encoding.range(shard)
        write_shard(encoding.path(folder, shard), examples()[start:stop], dtype)
    return encoding


def test_what_is_written_is_read(tmp_path):
    encoding = write(tmp_path)
    source = EncodedSource(tmp_path)
    assert isinstance(source, Source)
    assert isinstance(source, GatherSource)
    assert source.encoding == encoding
    assert len(source) == N
    for i, expected in enumerate(examples()):
        found = source[i]
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
        assert type(found["example_id"]) is int


def test_batches_are_those_of_arrays_in_memory(tmp_path):
    """Bit for bit what training read when the whole set was held in memory."""
    write(tmp_path)
    columns = {name: [e[name] for e in examples()] for name in examples()[0]}
    arrays = {name: np.stack(column) for name, column in columns.items()}
    stored, memory = EncodedSource(tmp_path), ArraySource(arrays)
    for step in range(5):
        ours, theirs = (Pipeline(s, 6, seed=3).batch(step) for s in (stored, memory))
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_half_precision_is_stored_as_such(tmp_path):
    write(tmp_path, "float16")
    found = EncodedSource(tmp_path).take([3, 0])
    assert found["context"].dtype == np.float16
    expected = np.stack([examples()[i]["context"] for i in (3, 0)])
    np.testing.assert_array_equal(found["context"], expected.astype(np.float16))
    assert found["example_id"].tolist() == [13, 10]


def test_it_travels_to_processes_and_serves_threads(tmp_path):
    write(tmp_path)
    source = pickle.loads(pickle.dumps(EncodedSource(tmp_path)))
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda i: source[i % N]["example_id"], range(200)))
    assert ids == [10 + i % N for i in range(200)]


def test_equal_examples_give_equal_files(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken():
        yield examples()[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_shard(tmp_path / "shard", broken(), "float32")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    (tmp_path / ".shard.12345.partial").write_bytes(b"torn")
    (tmp_path / ".other.12345.partial").write_bytes(b"of somebody else")
    write_shard(tmp_path / "shard", examples(), "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.12345.partial", "shard"]


def test_incomplete_and_foreign_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no encoded set \(encoding.json is missing\)"):
        EncodedSource(tmp_path)
    (tmp_path / "encoding.json").write_text("{}")
    with pytest.raises(DataError, match=r"encoding\.json: not readable"):
        EncodedSource(tmp_path)
    write(tmp_path, leave_out=(1, 2))
    with pytest.raises(DataError, match=r"2 of 3 files are missing.*00001-of-00003"):
        EncodedSource(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    encoding = write(tmp_path)
    path = encoding.path(tmp_path, 1)
    data = bytearray(path.read_bytes())
    middle = data.index(b"latent_mean") if b"latent_mean" in data else 65_600
    data[middle - 100 : middle + 400] = bytes(500)
    path.write_bytes(data)
    source = EncodedSource(tmp_path)
    assert source[0]["example_id"] == 10
    with pytest.raises(DataError, match=r"near encoded.array_record-00001-of-00003"):
        source.take(range(SHARD, 2 * SHARD))
