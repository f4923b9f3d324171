"""Import and export in the diffusers layout: bitwise round trips and strictness."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from ldm_scaling.checkpoint import names
from ldm_scaling.checkpoint.diffusers import (
    WEIGHTS,
    export_autoencoder,
    export_unet,
    import_autoencoder,
    import_unet,
)
from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.checkpoint.merge import KeyMismatchError
from ldm_scaling.checkpoint.pipeline_folder import (
    read_model_index,
    read_scheduler,
    write_model_index,
    write_scheduler,
)
from tests.checkpoint.networks import SMALL, UNETS, VAES, assert_same, unet_params, vae_params


@pytest.mark.parametrize("name", UNETS)
def test_unet_round_trip_is_bitwise(tmp_path, name):
    config = UNETS[name]
    params = unet_params(config)
    export_unet(config, params, tmp_path)
    read, found = import_unet(tmp_path)
    assert_same(found, params)
    assert read == config
    assert weights_hash(found) == weights_hash(params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", f"{WEIGHTS}.safetensors"]


@pytest.mark.parametrize("name", VAES)
def test_autoencoder_round_trip_is_bitwise(tmp_path, name):
    params = vae_params(VAES[name])
    export_autoencoder(VAES[name], params, tmp_path)
    read, found = import_autoencoder(tmp_path)
    assert read == VAES[name]
    assert_same(found, params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_float32(tmp_path, dtype):
    params = unet_params(SMALL)
    export_unet(SMALL, params, tmp_path, dtype)
    _, found = import_unet(tmp_path)
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    assert_same(found, jax.tree.map(lambda x: x.astype(kind).astype(np.float32), params))


def test_too_large_for_half_precision_is_refused(tmp_path):
    params = unet_params(SMALL)
    params["conv_out"]["bias"][1] = 1e6
    with pytest.raises(ValueError, match=r"conv_out.bias: 1000000.0 does not fit into float16"):
        export_unet(SMALL, params, tmp_path, "float16")
    with pytest.raises(ValueError, match="dtype='int8'"):
        export_unet(SMALL, params, tmp_path, "int8")


def test_names_and_layout_are_those_of_diffusers(state, exported):
    _, params = exported
    # As `UNet2DConditionModel` 0.42 prints them.
    shapes = {
        "conv_in.weight": (8, 3, 3, 3),
        "time_embedding.linear_1.weight": (32, 8),
        "down_blocks.0.resnets.0.time_emb_proj.weight": (8, 32),
        "down_blocks.0.attentions.0.proj_in.weight": (8, 8, 1, 1),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (8, 12),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.bias": (8,),
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": (64, 8),
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.weight": (8, 32),
        "down_blocks.0.downsamplers.0.conv.weight": (8, 8, 3, 3),
        "up_blocks.1.resnets.0.conv_shortcut.weight": (8, 24, 1, 1),
        "up_blocks.0.upsamplers.0.conv.weight": (16, 16, 3, 3),
        "mid_block.attentions.0.norm.weight": (16,),
        "conv_norm_out.weight": (8,),
    }
    assert {name: state[name].shape for name in shapes} == shapes
    ours = params["conv_in"]["kernel"]  # [h, w, i, o]
    assert state["conv_in.weight"][5, 2, 1, 0] == ours[1, 0, 2, 5]
    ours = params["time_embedding"]["linear_1"]["kernel"]  # [i, o]
    assert state["time_embedding.linear_1.weight"][9, 3] == ours[3, 9]


@pytest.mark.parametrize("name", UNETS)
def test_names_are_distinct_and_shapes_agree(name):
    params = unet_params(UNETS[name])
    shapes = names.file_shapes(params)
    state = names.to_file(params)
    assert len(state) == len(jax.tree.leaves(params))
    assert {k: v.shape for k, v in state.items()} == shapes
    assert {k: np.asarray(v).shape for k, v in state.items()} == shapes


def test_missing_unexpected_and_misshapen_raise_with_the_difference(state, config):
    bias = state.pop("conv_out.bias")
    state["conv_out.biass"] = bias
    state["conv_in.weight"] = state["conv_in.weight"][:, :2]
    with pytest.raises(KeyMismatchError) as error:
        import_unet(state, config)
    diff = error.value.diff
    assert diff.missing == ("conv_out.bias",)
    assert diff.unexpected == ("conv_out.biass",)
    assert diff.mismatched == {"conv_in.weight": ((8, 3, 3, 3), (8, 2, 3, 3))}
    text = str(error.value)
    assert "conv_out.bias  (near: conv_out.biass)" in text
    assert "conv_in.weight: [8, 3, 3, 3] expected, [8, 2, 3, 3] found" in text


def test_projection_of_the_other_kind_is_a_shape_mismatch(state, config):
    with pytest.raises(
        KeyMismatchError, match=r"proj_in.weight: \[8, 8\] expected, \[8, 8, 1, 1\]"
    ):
        import_unet(state, {**config, "use_linear_projection": True})


def test_export_refuses_params_of_another_network(tmp_path, exported):
    _, params = exported
    wider = dataclasses.replace(SMALL, context_size=16)
    with pytest.raises(KeyMismatchError, match="params to export") as error:
        export_unet(wider, params, tmp_path)
    assert len(error.value.diff.mismatched) == 8  # to_k and to_v of 4 transformers
    assert not list(tmp_path.iterdir())


def test_a_state_dict_needs_a_config(state, config, exported):
    read, found = import_unet(state, config)
    assert read == SMALL
    assert_same(found, exported[1])
    with pytest.raises(ValueError, match="config=None"):
        import_unet(state)


def test_prediction_type_comes_from_the_scheduler_beside(tmp_path, exported, caplog):
    shutil.copytree(exported[0], tmp_path / "unet")
    assert import_unet(tmp_path / "unet")[0].prediction_type == "v_prediction"  # the note
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", "steps_offset": 1}
    write_scheduler(tmp_path, scheduler)
    assert read_scheduler(tmp_path) == scheduler
    assert import_unet(tmp_path / "unet")[0].prediction_type == "epsilon"
    assert "was exported with v_prediction" in caplog.text


def test_model_index(tmp_path):
    components = {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("ldm_scaling", "minilm"),
    }
    write_model_index(tmp_path, components)
    assert read_model_index(tmp_path) == components
    raw = json.loads((tmp_path / "model_index.json").read_text())
    assert raw["_class_name"] == "StableDiffusionPipeline"
    raw["safety_checker"] = [None, None]  # as files of others have it
    (tmp_path / "model_index.json").write_text(json.dumps(raw))
    assert read_model_index(tmp_path) == components
