"""What is said where there are no weights."""

import pytest

from ldm_scaling.checkpoint.weights_file import read_weights


def test_missing_weights_name_the_expected_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors or model\.fp16"):
        read_weights(tmp_path, "model")


def test_a_pickle_beside_is_pointed_out(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"model\.bin may hide code"):
        read_weights(tmp_path, "model")
