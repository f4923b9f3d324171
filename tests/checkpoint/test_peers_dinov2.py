"""What transformers saves of a DINOv2 opens here and computes the same, and goes back unchanged.

Needs `pip install torch transformers`; run with `pytest -m slow`.
"""

import json

import jax
import numpy as np
import pytest

from ldm_scaling.checkpoint.diffusers import TEXT_ENCODER_WEIGHTS, import_dinov2
from ldm_scaling.checkpoint.names import to_file
from ldm_scaling.checkpoint.weights_file import write_weights
from ldm_scaling.encoders.dinov2 import Dinov2
from tests.golden_makers.dinov2 import CONFIGS, SMALL, small_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of other people's packages
]

CLASSIFIER = "Dinov2ForImageClassification"
MODELS = {
    "mlp": ("Dinov2Model", CONFIGS["mlp"]),
    "swiglu": ("Dinov2Model", CONFIGS["swiglu"]),
    "wide heads": ("Dinov2Model", {**SMALL, "num_attention_heads": 2, "mlp_ratio": 3}),
    "published patches": ("Dinov2Model", {**SMALL, "image_size": 518, "patch_size": 14}),
    "classifier": (CLASSIFIER, {**SMALL, "num_labels": 5}),
}


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return torch


@pytest.mark.parametrize("name", MODELS)
def test_dinov2(torch, tmp_path, name):
    kind, fields = MODELS[name]
    theirs = small_model(kind, fields)
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = import_dinov2(tmp_path / "theirs")

    patch = config.patch_size
    network = theirs.dinov2 if kind == CLASSIFIER else theirs
    apply = jax.jit(Dinov2(config).apply)
    for rows, columns in ((config.image_size // patch,) * 2, (16, 16), (3, 7), (1, 9)):
        shape = (2, rows * patch, columns * patch, 3)
        pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
        found = np.asarray(apply({"params": params}, pixels))
        for ours, others in (
            (found, expected.last_hidden_state.numpy()),
            (found[:, 0], expected.pooler_output.numpy()),
        ):
            assert np.abs(ours - others).max() <= 1e-5 * np.abs(others).max()

    write_weights(tmp_path / "ours", TEXT_ENCODER_WEIGHTS, to_file(params), "float32")
    raw = json.loads((tmp_path / "theirs" / "config.json").read_text())
    raw |= {"architectures": ["Dinov2Model"], "use_mask_token": False}
    (tmp_path / "ours" / "config.json").write_text(json.dumps(raw))
    back, info = type(network).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[f"{fault}_keys"] for fault in ("missing", "unexpected", "mismatched"))
    state = network.state_dict()
    for key, tensor in back.state_dict().items():
        assert torch.equal(tensor, state.pop(key)), key
    assert list(state) == ["embeddings.mask_token"]
