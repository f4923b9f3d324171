"""Folders as others write them: options we refuse, old names, variants, shards, torn files."""

import dataclasses
import json

import pytest
import safetensors.numpy

from ldm_scaling.checkpoint.diffusers import (
    WEIGHTS,
    export_autoencoder,
    import_autoencoder,
    import_unet,
)
from ldm_scaling.checkpoint.diffusers_config import (
    UnsupportedConfigError,
    unet_from_diffusers,
    unet_to_diffusers,
)
from ldm_scaling.unet.config import UNetConfig
from tests.checkpoint.networks import SMALL, VAES, assert_same, vae_params

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
