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


@pytest.mark.parametrize("arrays", [{}, {"a": np.zeros(2), "b": np.zeros(3)}, {"a": np.zeros(0)}])
def test_array_source_needs_equal_lengths(arrays):
    with pytest.raises(DataError, match="one and the same length"):
        ArraySource(arrays)


def test_stack_names_what_does_not_fit():
    with pytest.raises(DataError, match="group: example_id=8 has none"):
        stack([{"group": "a", "example_id": 7}, {"example_id": 8}], 2)


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
