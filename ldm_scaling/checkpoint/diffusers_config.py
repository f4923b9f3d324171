"""The config.json of diffusers, to and from our configs; options we do not have are refused.

Names and defaults are those of `UNet2DConditionModel` and `AutoencoderKL` in diffusers 0.35-0.42.
Fields that begin with an underscore are notes, which diffusers skips in silence.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ldm_scaling.encoders.autoencoder import AutoencoderConfig
from ldm_scaling.unet.config import UNetConfig

IGNORED = object()
"""In the tables of fields: any value gives the same network."""

# Fields that decide our config, with diffusers' defaults.
_UNET_READ: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "use_linear_projection": False,
    "norm_num_groups": 32,
}
# Fields of which we have one value, the default.
_UNET_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": IGNORED,  # of addition_embed_type
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "upcast_attention": IGNORED,  # our softmax is float32 always
}
_AUTOENCODER_READ: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "mid_block_add_attention": True,
}
_AUTOENCODER_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "force_upcast": IGNORED,  # a hint about float16
    "latents_mean": None,
    "latents_std": None,
    "sample_size": IGNORED,  # any size runs
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}


class UnsupportedConfigError(ValueError):
    """A config.json asks for something that this library does not compute."""


def unet_from_diffusers(config: Mapping[str, Any], prediction_type: str) -> UNetConfig:
    """config.json of a `UNet2DConditionModel` -> `UNetConfig`.

    `attention_head_dim` there means the *number* of heads (diffusers keeps the misnomer for the
    sake of old files). A head size in our config comes back as the number of heads of each level.

    Raises:
      UnsupportedConfigError: names the field and its value.
    """
    fields = read_fields(config, "UNet2DConditionModel", _UNET_READ, _UNET_FIXED)
    levels = len(fields["block_out_channels"])
    attention = [_has_attention(kind) for kind in fields["down_block_types"]]
    require("down_block_types", fields["down_block_types"], _unet_blocks("Down", attention))
    require("up_block_types", fields["up_block_types"], _unet_blocks("Up", attention[::-1]))
    if len(attention) != levels:
        raise UnsupportedConfigError(
            f"block_out_channels={fields['block_out_channels']}: {len(attention)} down_block_types"
        )
    heads = fields["attention_head_dim"]
    return UNetConfig(
        in_channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        sample_size=one_value("sample_size", fields["sample_size"] or _UNET_READ["sample_size"]),
        block_out_channels=tuple(fields["block_out_channels"]),
        layers_per_block=one_value("layers_per_block", fields["layers_per_block"]),
        attention_levels=tuple(attention),
        heads=tuple(heads) if isinstance(heads, list | tuple) else heads,
        context_size=one_value("cross_attention_dim", fields["cross_attention_dim"]),
        linear_projection=fields["use_linear_projection"],
        norm_groups=fields["norm_num_groups"],
        prediction_type=prediction_type,
    )


def unet_to_diffusers(config: UNetConfig) -> dict[str, Any]:
    """`UNetConfig` -> config.json of a `UNet2DConditionModel`, every field written.

    What says nothing about the network (compute dtype, rematerialisation, attention kernel) is
    left out. The prediction type is a field of the scheduler's config in diffusers; here it stands
    as a note, so that the folder alone still tells it.
    """
    levels = range(len(config.block_out_channels))
    uniform = isinstance(config.heads, int)
    return _written(_UNET_FIXED) | {
        "_class_name": "UNet2DConditionModel",
        "_prediction_type": config.prediction_type,
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "down_block_types": _unet_blocks("Down", config.attention_levels),
        "up_block_types": _unet_blocks("Up", config.attention_levels[::-1]),
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "attention_head_dim": config.heads if uniform else [config.heads_of(i) for i in levels],
        "cross_attention_dim": config.context_size,
        "use_linear_projection": config.linear_projection,
        "norm_num_groups": config.norm_groups,
    }


def autoencoder_from_diffusers(config: Mapping[str, Any]) -> AutoencoderConfig:
    """config.json of an `AutoencoderKL` -> `AutoencoderConfig`.

    Raises:
      UnsupportedConfigError: names the field and its value.
    """
    fields = read_fields(config, "AutoencoderKL", _AUTOENCODER_READ, _AUTOENCODER_FIXED)
    levels = len(fields["block_out_channels"])
    require("down_block_types", fields["down_block_types"], ["DownEncoderBlock2D"] * levels)
    require("up_block_types", fields["up_block_types"], ["UpDecoderBlock2D"] * levels)
    require("out_channels", fields["out_channels"], fields["in_channels"])
    return AutoencoderConfig(
        in_channels=fields["in_channels"],
        latent_channels=fields["latent_channels"],
        block_out_channels=tuple(fields["block_out_channels"]),
        layers_per_block=fields["layers_per_block"],
        norm_groups=fields["norm_num_groups"],
        mid_attention=fields["mid_block_add_attention"],
        scaling_factor=fields["scaling_factor"],
        shift_factor=fields["shift_factor"] or 0.0,
    )


def autoencoder_to_diffusers(config: AutoencoderConfig) -> dict[str, Any]:
    """`AutoencoderConfig` -> config.json of an `AutoencoderKL`; the compute dtype is left out."""
    levels = len(config.block_out_channels)
    return _written(_AUTOENCODER_FIXED) | {
        "_class_name": "AutoencoderKL",
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor or None,
        "mid_block_add_attention": config.mid_attention,
    }


def read_fields(
    config: Mapping[str, Any], kind: str, read: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of `read` with defaults filled in; refuses what is not known or not `fixed`."""
    require("_class_name", config.get("_class_name", kind), kind)
    for name, value in config.items():
        if name.startswith("_") or name in read:
            continue
        if name not in fixed:
            near = difflib.get_close_matches(name, [*read, *fixed], n=1)
            hint = f"; the nearest known is {near[0]}" if near else ""
            raise UnsupportedConfigError(f"{name}={value!r}: not a known field of {kind}{hint}")
        if fixed[name] is not IGNORED:
            require(name, value, fixed[name])
    return {name: config.get(name, default) for name, default in read.items()}


def require(name: str, value: Any, supported: Any) -> None:
    """Raises UnsupportedConfigError unless the value, or each entry of it, is the supported one."""
    if isinstance(supported, list):
        same = list(value) == supported
    elif isinstance(value, list | tuple):
        same = bool(value) and all(entry == supported for entry in value)
    else:
        same = value == supported
    if not same:
        raise UnsupportedConfigError(f"{name}={value!r}: only {supported!r} is supported")


def one_value(name: str, value: Any) -> Any:
    """A field that may be written as one number, or once for each level or axis."""
    if not isinstance(value, list | tuple):
        return value
    if len(set(value)) != 1:
        raise UnsupportedConfigError(f"{name}={value!r}: only one value for all is supported")
    return value[0]


def _has_attention(block_type: str) -> bool:
    return block_type.startswith("CrossAttn")


def _unet_blocks(direction: str, attention: Iterable[bool]) -> list[str]:
    return [f"{'CrossAttn' if has else ''}{direction}Block2D" for has in attention]


def _written(fixed: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fixed.items() if value is not IGNORED}
