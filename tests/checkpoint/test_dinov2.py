"""DINOv2 in transformers' layout: a folder as it is saved, its classifier's, options we refuse."""

import json

import numpy as np
import pytest
import safetensors.numpy

from ldm_scaling.checkpoint.diffusers import import_dinov2
from ldm_scaling.checkpoint.diffusers_config import UnsupportedConfigError
from ldm_scaling.checkpoint.merge import KeyMismatchError
from ldm_scaling.checkpoint.names import to_file
from ldm_scaling.checkpoint.transformers_config import dinov2_from_transformers
from ldm_scaling.encoders import Dinov2Config
from tests.checkpoint.networks import assert_same

MASK = "embeddings.mask_token"
# ViT-L/14's sizes in the fields that transformers 4.32 wrote.
LARGE = {
    "architectures": ["Dinov2Model"],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 1024,
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "qkv_bias": True,
    "torch_dtype": "float32",
    "transformers_version": "4.32.0.dev0",
    "use_swiglu_ffn": False,
}


@pytest.fixture(scope="module")
def saved(goldens):
    """saved(name) -> config.json and state dict as transformers saved them."""

    def read(name):
        with np.load(goldens / f"encoders_dinov2_{name}.npz") as file:
            state = {k.removeprefix("state/"): file[k] for k in file if k.startswith("state/")}
            return json.loads(str(file["config"])), state

    return read


@pytest.mark.parametrize("name", ["mlp", "swiglu"])
def test_a_folder_gives_every_weight_under_its_own_name(tmp_path, saved, name):
    raw, state = saved(name)
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config, params = import_dinov2(tmp_path)
    again, found = import_dinov2(state, raw)
    assert config == again
    assert_same(params, found)
    written = {name: np.asarray(array) for name, array in to_file(params).items()}
    assert written.keys() == state.keys() - {MASK}
    for key, array in written.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, state[key].astype(np.float32), key)


def test_a_classifier_gives_its_backbone(saved):
    raw, state = saved("mlp")
    wrapped = {f"dinov2.{name}": array for name, array in state.items()}
    wrapped |= {"classifier.weight": np.zeros((7, 64)), "classifier.bias": np.zeros(7)}
    assert_same(import_dinov2(wrapped, raw)[1], import_dinov2(state, raw)[1])


def test_differing_weights_are_named(saved):
    raw, state = saved("mlp")
    key = "encoder.layer.1.attention.attention.query.weight"
    without = {name: array for name, array in state.items() if name != key}
    with pytest.raises(KeyMismatchError, match=rf"1 missing:\n +{key}"):
        import_dinov2(without, raw)
    registers = {**state, "embeddings.register_tokens": np.zeros((1, 4, 32))}
    with pytest.raises(KeyMismatchError, match=r"unexpected:\n +embeddings\.register_tokens"):
        import_dinov2(registers, raw)
    wider = {**raw, "image_size": 24}
    with pytest.raises(
        KeyMismatchError, match=r"position_embeddings: \[1, 37, 32\] expected, \[1, 26, 32\] found"
    ):
        import_dinov2(state, wider)


def test_configs_of_the_world():
    assert dinov2_from_transformers(LARGE) == Dinov2Config()
    assert dinov2_from_transformers({**LARGE, "image_size": [518, 518]}) == Dinov2Config()
    giant = {
        **LARGE,
        "hidden_size": 1536,
        "num_attention_heads": 24,
        "num_hidden_layers": 40,
        "use_swiglu_ffn": True,
    }
    assert dinov2_from_transformers(giant) == Dinov2Config(
        hidden_size=1536,
        intermediate_size=4096,
        num_attention_heads=24,
        num_hidden_layers=40,
        use_swiglu_ffn=True,
    )
    # transformers' defaults
    assert dinov2_from_transformers({"model_type": "dinov2"}) == Dinov2Config(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "clip"}, "model_type='clip': only 'dinov2' is supported"),
        ({"model_type": "dinov2_with_registers"}, "'dinov2_with_registers': only 'dinov2'"),
        ({"qkv_bias": False}, "qkv_bias=False: only True"),
        ({"image_size": [518, 224]}, r"image_size=\[518, 224\]: only one value"),
        ({"num_register_tokens": 4}, "num_register_tokens=4: not a known field"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ],
)
def test_unsupported_options_are_named(change, message):
    with pytest.raises(UnsupportedConfigError, match=message):
        dinov2_from_transformers({**LARGE, **change})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/config\.json: no such file"):
        import_dinov2(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps(LARGE))
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        import_dinov2(tmp_path)
