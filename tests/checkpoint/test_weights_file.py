"""Files of weights: what is said where there are none, and who may read them."""

import json
import os
import tracemalloc

import jax
import numpy as np
import pytest

from ldm_scaling.checkpoint import names
from ldm_scaling.checkpoint.weights_file import read_weights, write_weights

ARRAYS = {name: np.full((4, 8), i, np.float32) for i, name in enumerate("abcde")}  # 128 bytes each


def test_missing_weights_name_the_expected_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors or model\.fp16"):
        read_weights(tmp_path, "model")


def test_a_pickle_beside_is_pointed_out(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"model\.bin may hide code"):
        read_weights(tmp_path, "model")


def test_weights_are_readable_by_whom_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        write_weights(tmp_path, "model", {"a": np.zeros(2, np.float32)}, "float32")
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_too_big_for_one_file_is_written_in_shards(tmp_path, dtype):
    size = 128 if dtype == "float32" else 64
    write_weights(tmp_path, "model", ARRAYS, dtype, shard_bytes=2 * size)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert files(tmp_path) == [*shards, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 5 * size}
    assert list(index["weight_map"].values()) == [shards[i] for i in (0, 0, 1, 1, 2)]
    read = read_weights(tmp_path, "model")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(np.asarray(read[name], np.float32), array)


def test_shards_of_the_fp16_variant_are_found(tmp_path):
    write_weights(tmp_path, "model", ARRAYS, "float16", shard_bytes=128)
    index = tmp_path / "model.safetensors.index.json"
    index.rename(tmp_path / "model.safetensors.index.fp16.json")  # transformers' name for it
    assert read_weights(tmp_path, "model").keys() == ARRAYS.keys()


def test_a_write_leaves_nothing_of_the_one_before(tmp_path):
    other = tmp_path / "model.fp16.safetensors"
    other.touch()
    for shard_bytes in (256, 10**6, 128):
        changed = {name: array + shard_bytes for name, array in ARRAYS.items()}
        write_weights(tmp_path, "model", changed, "float32", shard_bytes)
        assert len(files(tmp_path)) == 1 + {256: 4, 10**6: 1, 128: 6}[shard_bytes]
        found = read_weights(tmp_path, "model")["c"]
        np.testing.assert_array_equal(np.asarray(found), changed["c"])
    assert other.exists()


def test_an_array_larger_than_a_shard_is_a_shard_alone(tmp_path):
    write_weights(tmp_path, "model", ARRAYS, "float32", shard_bytes=1)
    assert len(files(tmp_path)) == 6


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_neither_reading_nor_writing_holds_the_weights_twice(tmp_path, dtype):
    """Of sixteen layers, at most the parameters and what one layer needs are in memory."""
    rng = np.random.default_rng(0)
    params = {f"layer_{i}": {"kernel": rng.normal(size=(256, 512))} for i in range(16)}
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    size = 16 * 256 * 512 * 4
    write_weights(tmp_path, "model", names.to_file(params), dtype, shard_bytes=size // 8)

    def peak(function):
        tracemalloc.start()
        kept = function()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept is None or jax.tree.structure(kept) == jax.tree.structure(params)
        return most

    def read():
        return names.from_file(params, read_weights(tmp_path, "model"), "test")

    def write():
        write_weights(tmp_path, "model", names.to_file(params), dtype, shard_bytes=size // 8)

    assert size < peak(read) < 1.3 * size
    assert peak(write) < 0.3 * size  # beside the parameters


def test_a_part_of_a_stored_array(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    write_weights(tmp_path, "model", {"a": array}, "float32")
    part = read_weights(tmp_path, "model")["a"][1, :, 1:3]
    assert part.shape == (3, 2)
    np.testing.assert_array_equal(np.asarray(part), array[1, :, 1:3])
