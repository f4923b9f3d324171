"""Stable Diffusion in one file: names by diffusers' own converters, sizes by shapes, refusals."""

import json

import numpy as np
import pytest
import safetensors.numpy

from ldm_scaling.checkpoint import names
from ldm_scaling.checkpoint.diffusers import import_autoencoder, import_unet
from ldm_scaling.checkpoint.diffusers_config import (
    autoencoder_from_diffusers,
    unet_from_diffusers,
)
from ldm_scaling.checkpoint.single_file import open_single_file, split_state
from ldm_scaling.encoders.autoencoder import AutoencoderConfig
from ldm_scaling.unet.config import UNetConfig
from tests.checkpoint.networks import assert_same, unet_params, vae_params

UNET = UNetConfig(
    sample_size=16,
    block_out_channels=(32, 64, 128, 128),
    context_size=24,
    heads=(1, 1, 2, 2),
    linear_projection=True,
)
VAE = AutoencoderConfig(block_out_channels=(32, 64, 96, 96), layers_per_block=2)


@pytest.fixture(scope="module")
def golden(goldens):
    with np.load(goldens / "checkpoint_single_file.npz") as file:
        return {name: json.loads(str(value)) for name, value in file.items()}


def zeros(shape):
    return np.broadcast_to(np.float32(0), shape)  # of any size, in four bytes


@pytest.fixture(scope="module")
def sd1(golden):
    """Stable Diffusion 1: names and shapes; the text encoder's names are transformers'."""
    clip = "cond_stage_model.transformer.text_model."
    return {
        **{f"model.diffusion_model.{old}": zeros(s) for old, s, _ in golden["unet_sd1"]},
        **{f"first_stage_model.{old}": zeros(s) for old, s, _ in golden["vae"]},
        f"{clip}embeddings.token_embedding.weight": zeros((49408, 768)),
        f"{clip}embeddings.position_embedding.weight": zeros((77, 768)),
        f"{clip}embeddings.position_ids": zeros((1, 77)),
        **{f"{clip}encoder.layers.{i}.mlp.fc1.weight": zeros((3072, 768)) for i in range(12)},
        "betas": zeros((1000,)),
        "model_ema.decay": zeros(()),
    }


@pytest.fixture(scope="module")
def sd2(golden):
    return {
        **{f"model.diffusion_model.{old}": zeros(s) for old, s, _ in golden["unet_sd2"]},
        **{f"first_stage_model.{old}": zeros(s) for old, s, _ in golden["vae"]},
        **{f"cond_stage_model.model.{old}": zeros(s) for old, s, _ in golden["open_clip"]},
    }


def test_names_are_those_of_diffusers(golden, sd1, sd2):
    for state, unet in ((sd1, "unet_sd1"), (sd2, "unet_sd2")):
        found = split_state(state, "test")
        assert {k: list(v.shape) for k, v in found.unet.items()} == {
            new: shape for _, shape, new in golden[unet]
        }
        current = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
        autoencoder = set()
        for name in found.autoencoder:
            for old, new in current.items():
                name = name.replace(f".{old}.", f".{new}.")
            autoencoder.add(name)
        assert autoencoder == {new for _, _, new in golden["vae"]}


def test_sizes_follow_from_the_shapes(sd1, sd2):
    first, second = split_state(sd1, "test"), split_state(sd2, "test", sample_size=96)
    assert unet_from_diffusers(first.unet_config, "epsilon") == UNetConfig(context_size=768)
    assert unet_from_diffusers(second.unet_config, "v_prediction") == UNetConfig(
        context_size=1024,
        heads=(5, 10, 20, 20),
        linear_projection=True,
        sample_size=96,
        prediction_type="v_prediction",
    )
    for found in (first, second):
        assert autoencoder_from_diffusers(found.autoencoder_config) == AutoencoderConfig()
    assert first.text_encoder_config == {
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    }
    assert second.text_encoder_config["num_hidden_layers"] == 23  # the context is its penultimate
    assert second.text_encoder_config["hidden_act"] == "gelu"


def test_open_clip_is_taken_apart_as_diffusers_does(golden, sd2):
    found = split_state(sd2, "test").text_encoder
    expected = {new: shape for _, shape, names in golden["open_clip"] for new in names}
    assert found.keys() == expected.keys()
    width = 1024
    for name, shape in expected.items():
        packed = any(f".{kind}_proj." in name for kind in "qkv")
        assert list(found[name].shape) == ([width, *shape[1:]] if packed else shape)


def test_queries_keys_and_values_are_parts_of_one_array(sd2):
    name = "cond_stage_model.model.transformer.resblocks.3.attn.in_proj_bias"
    found = split_state({**sd2, name: np.arange(3072.0)}, "test").text_encoder
    for i, kind in enumerate("qkv"):
        part = found[f"text_model.encoder.layers.3.self_attn.{kind}_proj.bias"]
        np.testing.assert_array_equal(part, np.arange(1024 * i, 1024 * (i + 1)))


@pytest.fixture(scope="module")
def small(golden):
    """A small network of the same build, in the names of the original code; and its parameters."""
    unet, vae = unet_params(UNET), vae_params(VAE)
    state = {}
    for prefix, params, pairs in (
        ("model.diffusion_model", unet, golden["unet_sd2"]),
        ("first_stage_model", vae, golden["vae"]),
    ):
        stored = names.to_file(params)
        for old, shape, new in pairs:
            array = np.asarray(stored[new])
            state[f"{prefix}.{old}"] = array.reshape(array.shape + (1,) * (len(shape) - array.ndim))
    clip = "cond_stage_model.transformer.text_model."
    state |= {
        f"{clip}embeddings.token_embedding.weight": np.zeros((10, 24), np.float32),
        f"{clip}embeddings.position_embedding.weight": np.zeros((7, 24), np.float32),
        f"{clip}encoder.layers.0.mlp.fc1.weight": np.zeros((48, 24), np.float32),
    }
    return state, unet, vae


def test_a_file_gives_the_networks(small, tmp_path):
    state, unet, vae = small
    safetensors.numpy.save_file(state, tmp_path / "sd.safetensors")
    found = open_single_file(tmp_path / "sd.safetensors", sample_size=16)
    config, params = import_unet(found.unet, found.unet_config)
    assert config == UNET
    assert_same(params, unet)
    config, params = import_autoencoder(found.autoencoder, found.autoencoder_config)
    assert config == VAE
    assert_same(params, vae)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("conditioner.embedders.0.x", "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.x", "Flux"),
        ("lora_unet_down.x", "a LoRA"),
        ("control_model.x", "a ControlNet"),
    ],
)
def test_other_architectures_are_named(sd1, added, message):
    with pytest.raises(ValueError, match=f"test: {message}"):
        split_state({**sd1, added: np.zeros(1)}, "test")


def test_what_is_missing_is_named(sd1, small, tmp_path):
    for prefix in ("model.diffusion_model", "first_stage_model", "cond_stage_model"):
        rest = {k: v for k, v in sd1.items() if not k.startswith(prefix)}
        with pytest.raises(ValueError, match=prefix.replace(".", r"\.")):
            split_state(rest, "test")
    with pytest.raises(FileNotFoundError, match=r"sd\.safetensors: no such file"):
        open_single_file(tmp_path / "sd.safetensors")
    state = dict(small[0])
    del state["model.diffusion_model.middle_block.1.norm.weight"]
    found = split_state(state, "test")
    with pytest.raises(ValueError, match=r"missing:\n *mid_block\.attentions\.0\.norm\.weight"):
        import_unet(found.unet, found.unet_config)
