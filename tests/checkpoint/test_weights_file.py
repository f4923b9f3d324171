"""Files of weights: what is said where there are none, and who may read them."""

import os

import numpy as np
import pytest

from ldm_scaling.checkpoint.weights_file import read_weights, write_weights


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
