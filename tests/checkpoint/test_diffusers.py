"""Import and export in the diffusers layout: bitwise round trips, strictness, refused options."""

import dataclasses
import functools
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ldm_scaling.checkpoint import names
from ldm_scaling.checkpoint.diffusers import (
    WEIGHTS,
    export_autoencoder,
    export_unet,
    import_autoencoder,
    import_unet,
)
from ldm_scaling.checkpoint.diffusers_config import (
    UnsupportedConfigError,
    unet_from_diffusers,
    unet_to_diffusers,
)
from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.checkpoint.merge import KeyMismatchError, flatten
from ldm_scaling.checkpoint.pipeline_folder import (
    read_model_index,
    read_scheduler,
    write_model_index,
    write_scheduler,
)
from ldm_scaling.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ldm_scaling.unet.config import UNetConfig
from ldm_scaling.unet.unet import UNet

SMALL = UNetConfig(
    in_channels=3,
    out_channels=5,
    sample_size=8,
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention_levels=(True, False),
    heads=2,
    context_size=12,
    norm_groups=4,
    prediction_type="v_prediction",
)
UNETS = {
    "sd1": SMALL,
    "sd2": dataclasses.replace(SMALL, linear_projection=True, heads=(1, 2), layers_per_block=2),
}
VAES = {
    "sd": AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_groups=4),
    "micro": AutoencoderConfig(
        latent_channels=8,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_groups=8,
        mid_attention=False,
        scaling_factor=0.7,
        shift_factor=0.25,
    ),
}


def random_like(template, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), template)


@functools.cache  # tracing a UNet takes seconds
def unet_shapes(config):
    shapes = ((1, 8, 8, config.in_channels), (1,), (1, 2, config.context_size))
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return jax.eval_shape(UNet(config).init, jax.random.key(0), *arguments)["params"]


def unet_params(config):
    return random_like(unet_shapes(config))


def vae_params(config):
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    return random_like(jax.eval_shape(Autoencoder(config).init, jax.random.key(0), image)["params"])


def assert_same(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert np.array_equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    params = unet_params(SMALL)
    export_unet(SMALL, params, folder)
    return folder, params


@pytest.fixture
def state(exported):
    return safetensors.numpy.load_file(exported[0] / f"{WEIGHTS}.safetensors")


@pytest.fixture
def config(exported):
    return json.loads((exported[0] / "config.json").read_text())


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


UNSUPPORTED = {
    "class_embed_type": "timestep",
    "num_class_embeds": 10,
    "addition_embed_type": "text_time",
    "dual_cross_attention": True,
    "encoder_hid_dim": 768,
    "only_cross_attention": [True, False],
    "resnet_time_scale_shift": "scale_shift",
    "time_cond_proj_dim": 256,
    "transformer_layers_per_block": [1, 2],
    "num_attention_heads": 8,
    "layers_per_block": [1, 2],
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "mid_block_type": None,
    "_class_name": "UNet2DModel",
}


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_unsupported_options_name_field_and_value(state, config, field):
    value = UNSUPPORTED[field]
    with pytest.raises(UnsupportedConfigError) as error:
        import_unet(state, {**config, field: value})
    assert f"{field}={value!r}" in str(error.value)


def test_unknown_field_names_the_nearest(state, config):
    with pytest.raises(
        UnsupportedConfigError, match=r"norm_groups=4: .* nearest .* norm_num_group"
    ):
        import_unet(state, {**config, "norm_groups": 4})


def test_a_config_of_only_some_fields_gets_diffusers_defaults():
    # What Stable Diffusion 1.5 ships, of 2022: most of today's fields did not exist.
    sd15 = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    assert unet_from_diffusers(sd15, "epsilon") == UNetConfig(context_size=768)
    sd21 = {
        **sd15,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
        "dual_cross_attention": False,
        "only_cross_attention": False,
        "num_class_embeds": None,
    }
    expected = UNetConfig(
        heads=(5, 10, 20, 20), linear_projection=True, prediction_type="v_prediction"
    )
    assert unet_from_diffusers(sd21, "v_prediction") == expected


def test_head_size_is_written_as_the_number_of_heads():
    """Which is what `attention_head_dim` means in diffusers."""
    config = dataclasses.replace(SMALL, heads=None, head_size=8, norm_groups=8)
    raw = unet_to_diffusers(config)
    assert raw["attention_head_dim"] == [1, 2]
    read = unet_from_diffusers(raw, config.prediction_type)
    assert read == dataclasses.replace(config, heads=(1, 2), head_size=None)


def test_prediction_type_comes_from_the_scheduler_beside(tmp_path, exported, caplog):
    shutil.copytree(exported[0], tmp_path / "unet")
    assert import_unet(tmp_path / "unet")[0].prediction_type == "v_prediction"  # the note
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", "steps_offset": 1}
    write_scheduler(tmp_path, scheduler)
    assert read_scheduler(tmp_path) == scheduler
    assert import_unet(tmp_path / "unet")[0].prediction_type == "epsilon"
    assert "was exported with v_prediction" in caplog.text


def test_old_attention_names_of_autoencoders(tmp_path):
    params = vae_params(VAES["sd"])
    export_autoencoder(VAES["sd"], params, tmp_path)
    state = safetensors.numpy.load_file(tmp_path / f"{WEIGHTS}.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    old = {}
    for name, array in state.items():
        for new_name, old_name in {
            "to_q": "query",
            "to_k": "key",
            "to_v": "value",
            "to_out.0": "proj_attn",
        }.items():
            if f".{new_name}." in name:
                name = name.replace(f".{new_name}.", f".{old_name}.")
                array = array[..., None, None] if array.ndim == 2 else array
        old[name] = array
    assert len(old.keys() - state.keys()) == 16
    assert_same(import_autoencoder(old, config)[1], params)


def test_fp16_variant_and_shards_are_found(tmp_path, exported, state):
    folder, params = exported
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    variant = tmp_path / f"{WEIGHTS}.fp16.safetensors"
    variant.write_bytes((folder / f"{WEIGHTS}.safetensors").read_bytes())
    assert_same(import_unet(tmp_path)[1], params)
    variant.unlink()
    shards = ["a.safetensors", "b.safetensors"]
    home = {name: shards[i % 2] for i, name in enumerate(state)}
    for shard in shards:
        part = {name: state[name] for name in state if home[name] == shard}
        safetensors.numpy.save_file(part, tmp_path / shard)
    index = tmp_path / f"{WEIGHTS}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": home}))
    assert_same(import_unet(tmp_path)[1], params)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b.safetensors: named by .*index.json"):
        import_unet(tmp_path)


def test_missing_and_torn_files_are_named(tmp_path, exported):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        import_unet(tmp_path)
    folder, _ = exported
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / f"{WEIGHTS}.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match=r"no diffusion_pytorch_model.safetensors .*\.bin"):
        import_unet(tmp_path)
    whole = (folder / f"{WEIGHTS}.safetensors").read_bytes()
    for size in (0, 5, 300, len(whole) - 1):
        (tmp_path / f"{WEIGHTS}.safetensors").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{WEIGHTS}.safetensors: torn .* {size} bytes"):
            import_unet(tmp_path)
    (tmp_path / "config.json").write_text('{"torn": ')
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        import_unet(tmp_path)


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
