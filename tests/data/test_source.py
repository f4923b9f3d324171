"""The source in memory, and the door that tells sources apart."""

import subprocess
import sys

import numpy as np
import pytest

from ldm_scaling.data import ArraySource, DataError, Source, open_source
from ldm_scaling.data.source import GatherSource, stack

ARRAYS = {"latent_mean": np.zeros((3, 2, 2, 4), np.float32), "caption": np.array(["a", "bb", "c"])}


def test_array_source_is_a_source():
    source = ArraySource(ARRAYS)
    assert isinstance(source, Source)
    assert isinstance(source, GatherSource)
    assert len(source) == 3
    assert source[1]["caption"] == "bb"
    assert source[1]["example_id"] == 1
    assert source.take([2, 0])["caption"].tolist() == ["c", "a"]


def test_array_source_round_trip(tmp_path):
    ids = np.array([5, 6, 7])
    path = tmp_path / "latents.npz"
    ArraySource({**ARRAYS, "example_id": ids}).save(path)
    loaded = ArraySource.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["latents.npz"]
    assert loaded.arrays["caption"].tolist() == ["a", "bb", "c"]
    assert loaded.arrays["example_id"].tolist() == [5, 6, 7]
    np.testing.assert_array_equal(loaded.arrays["latent_mean"], ARRAYS["latent_mean"])


def test_array_source_keeps_the_old_file_when_saving_fails(tmp_path):
    path = tmp_path / "latents.npz"
    ArraySource(ARRAYS).save(path)
    before = path.read_bytes()
    tags = stack([{"tags": ["a"]}, {"tags": ["b", "c"]}])
    with pytest.raises(DataError, match="tags: only numbers and strings"):
        ArraySource(tags).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["latents.npz"]


def test_array_source_refuses_damaged_and_pickled_files(tmp_path):
    path = tmp_path / "latents.npz"
    with pytest.raises(DataError, match="no such file"):
        ArraySource.load(path)
    ArraySource(ARRAYS).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"not a whole \.npz"):
        ArraySource.load(path)
    np.savez(path, tags=np.array([["a"], None], dtype=object))
    with pytest.raises(DataError, match="allow_pickle"):
        ArraySource.load(path)


@pytest.mark.parametrize("arrays", [{}, {"a": np.zeros(2), "b": np.zeros(3)}, {"a": np.zeros(0)}])
def test_array_source_needs_equal_lengths(arrays):
    with pytest.raises(DataError, match="one and the same length"):
        ArraySource(arrays)


def test_stack_names_what_does_not_fit():
    with pytest.raises(DataError, match="group: example_id=8 has none"):
        stack([{"group": "a", "example_id": 7}, {"example_id": 8}])


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "~none"])
def test_paths_that_are_not_there(name):
    with pytest.raises(DataError, match="no such folder"):
        open_source(name)


def test_import_is_cheap():
    script = (
        "import sys, ldm_scaling.data; "
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'grain', 'jax') "
        "if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
