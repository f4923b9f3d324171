"""Stable Diffusion as one file, in the layout of the original code (CompVis, Stability AI).

UNet, autoencoder and text encoder lie in one state dict, under names of their own, which are turned
here into those of diffusers and transformers. What the file does not say (it holds arrays alone)
is concluded from the shapes; `prediction_type` and `sample_size` cannot be.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from ldm_scaling.checkpoint.stored import AnyArray, open_safetensors
from ldm_scaling.checkpoint.torch_pickle import load_torch_state

State = Mapping[str, AnyArray]

_UNET, _AUTOENCODER = "model.diffusion_model.", "first_stage_model."
_CLIP, _OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
# Of models that differ from Stable Diffusion 1 and 2 in more than names.
_OTHERS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "lora_unet_": "a LoRA, not a model",
    "control_model.": "a ControlNet, not a model",
}

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_MIDDLE = ("resnets.0", "attentions.0", "resnets.1")
_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "query",
    "k": "key",
    "v": "value",
    "proj_out": "proj_attn",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """The three networks of one file, in the names of diffusers and transformers.

    Attributes:
      unet, autoencoder, text_encoder: state dicts, not read yet.
      unet_config, autoencoder_config, text_encoder_config: what config.json would hold.
    """

    unet: State
    autoencoder: State
    text_encoder: State
    unet_config: Mapping[str, Any]
    autoencoder_config: Mapping[str, Any]
    text_encoder_config: Mapping[str, Any]


def open_single_file(path: str | os.PathLike[str], sample_size: int = 64) -> SingleFile:
    """Opens a checkpoint of Stable Diffusion 1.x or 2.x.

    Args:
      path: `.safetensors`; or a PyTorch pickle (`.ckpt`), of which nothing but tensors is admitted.
      sample_size: side of the latents it was trained on; 96 for those of 768 pixels.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another architecture, which is named; or a torn file. RefusedPickleError, one of
        them, where a pickle asks for more than tensors.
    """
    return split_state(_open(epath.Path(path)), os.fspath(path), sample_size)


def split_state(state: State, source: str, sample_size: int = 64) -> SingleFile:
    """As `open_single_file`, of a state dict; `source` is what a message calls it."""
    for prefix, name in _OTHERS.items():
        if any(key.startswith(prefix) for key in state):
            raise ValueError(f"{source}: {name}; only Stable Diffusion 1.x and 2.x are read")
    parts = {prefix: _part(state, prefix) for prefix in (_UNET, _AUTOENCODER, _CLIP, _OPEN_CLIP)}
    if missing := [prefix for prefix in (_UNET, _AUTOENCODER) if not parts[prefix]]:
        raise ValueError(
            f"{source}: no array is called {' or '.join(p + '*' for p in missing)}: not a "
            f"checkpoint of Stable Diffusion in one file; it begins with {sorted(state)[:3]}"
        )
    unet = _renamed(parts[_UNET], _unet_names(parts[_UNET]))
    autoencoder = _renamed(parts[_AUTOENCODER], _autoencoder_names(parts[_AUTOENCODER]))
    text = parts[_CLIP] if parts[_CLIP] else _from_open_clip(parts[_OPEN_CLIP])
    if not text:
        raise ValueError(f"{source}: no text encoder ({_CLIP}* or {_OPEN_CLIP}*)")
    return SingleFile(
        unet=unet,
        autoencoder=autoencoder,
        text_encoder={k: v for k, v in text.items() if not k.endswith("position_ids")},
        unet_config=_unet_config(unet, sample_size),
        autoencoder_config=_autoencoder_config(autoencoder),
        text_encoder_config=_text_config(text, open_clip=not parts[_CLIP]),
    )


def _open(path: epath.Path) -> State:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix in (".ckpt", ".bin", ".pt", ".pth"):
        return load_torch_state(path)
    return open_safetensors(path)


def _part(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): array for k, array in state.items() if k.startswith(prefix)}


def _renamed(state: State, rename: Callable[[str], str]) -> State:
    return {rename(name): array for name, array in state.items()}


def _replace_start(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def _unet_names(state: State) -> Callable[[str], str]:
    """Numbered blocks there: a level's layers, then its down- or upsampling, all in one list."""
    numbers = {int(k.split(".")[1]) for k in state if k.startswith("input_blocks.")}
    downs = sorted(int(k.split(".")[1]) for k in state if k.endswith(".0.op.weight"))
    each = downs[0] if downs else len(numbers)  # blocks of a level: layers and the downsampling

    def rename(name: str) -> str:
        if name.startswith(tuple(f"{end}." for end in _UNET_ENDS)):
            return _replace_start(name, _UNET_ENDS)
        if match := re.fullmatch(r"middle_block\.(\d)\.(.+)", name):
            return f"mid_block.{_MIDDLE[int(match[1])]}.{_replace_start(match[2], _RESNET)}"
        match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", name)
        if not match:
            return name
        side, number, part, rest = match[1], int(match[2]), int(match[3]), match[4]
        level, layer = divmod(number - (side == "input"), each)
        block = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
        if rest.startswith("op."):
            return f"{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        if rest.startswith("conv."):
            return f"{block}.upsamplers.0.{rest}"
        if part == 0:
            return f"{block}.resnets.{layer}.{_replace_start(rest, _RESNET)}"
        return f"{block}.attentions.{layer}.{rest}"

    return rename


def _autoencoder_names(state: State) -> Callable[[str], str]:
    """The decoder's levels are counted from the finest there, from the coarsest in diffusers."""
    levels = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("decoder.up."))

    def inside(rest: str) -> str:
        rest = rest.replace("nin_shortcut", "conv_shortcut")
        if match := re.fullmatch(r"mid\.block_(\d)\.(.+)", rest):
            return f"mid_block.resnets.{int(match[1]) - 1}.{match[2]}"
        if match := re.fullmatch(r"mid\.attn_1\.(.+)", rest):
            return f"mid_block.attentions.0.{_replace_start(match[1], _VAE_ATTENTION)}"
        if match := re.fullmatch(r"(down|up)\.(\d)\.(block|downsample|upsample)\.(.+)", rest):
            way, level, kind, last = match[1], int(match[2]), match[3], match[4]
            block = f"{way}_blocks.{level if way == 'down' else levels - 1 - level}"
            return f"{block}.{'resnets' if kind == 'block' else f'{kind}rs.0'}.{last}"
        return _replace_start(rest, {"norm_out": "conv_norm_out"})

    def rename(name: str) -> str:
        side, _, rest = name.partition(".")
        return f"{side}.{inside(rest)}" if side in ("encoder", "decoder") else name

    return rename


def _from_open_clip(state: State) -> State:
    """OpenCLIP's text tower in transformers' names; queries, keys and values are one array there.

    The context of Stable Diffusion 2 is the state before the last layer, which is left out here as
    in the published folders; so are the projection and the temperature.
    """
    if not state:
        return {}
    layers = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("transformer.resblocks."))
    ends = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    found: dict[str, AnyArray] = {}
    for name, array in state.items():
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if name in ends:
            found[f"text_model.{ends[name]}"] = array
        elif match and int(match[1]) < layers - 1:
            layer = f"text_model.encoder.layers.{match[1]}"
            if packed := re.fullmatch(r"attn\.in_proj_(weight|bias)", match[2]):
                size = array.shape[0] // 3
                for i, kind in enumerate("qkv"):
                    part = array[i * size : (i + 1) * size]
                    found[f"{layer}.self_attn.{kind}_proj.{packed[1]}"] = part
            else:
                found[f"{layer}.{_replace_start(match[2], _OPEN_CLIP_LAYER)}"] = array
        elif not match and name not in ("text_projection", "logit_scale", "attn_mask"):
            found[name] = array  # refused by name when it is merged
    return found


def _count(state: State, pattern: str) -> int:
    """How many different numbers stand at the place of `#`."""
    regex = re.compile(re.escape(pattern).replace(r"\#", r"(\d+)"))
    return len({match[1] for match in map(regex.match, state) if match})


def _shape(state: State, name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"{name} is missing: without it the size of the network is not known")
    return state[name].shape


def _unet_config(state: State, sample_size: int) -> dict[str, Any]:
    levels = range(_count(state, "down_blocks.#."))
    attends = [_count(state, f"down_blocks.{i}.attentions.#.") > 0 for i in levels]
    if not any(attends):
        raise ValueError("no attention in the UNet: a model without text is not read")
    first = f"down_blocks.{attends.index(True)}.attentions.0"
    channels = [_shape(state, f"down_blocks.{i}.resnets.0.conv2.weight")[0] for i in levels]
    linear = len(_shape(state, f"{first}.proj_in.weight")) == 2
    return {
        "sample_size": sample_size,
        "in_channels": _shape(state, "conv_in.weight")[1],
        "out_channels": _shape(state, "conv_out.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": _count(state, "down_blocks.0.resnets.#."),
        "down_block_types": [f"{'CrossAttn' if a else ''}DownBlock2D" for a in attends],
        "up_block_types": [f"{'CrossAttn' if a else ''}UpBlock2D" for a in attends[::-1]],
        "cross_attention_dim": _shape(state, f"{first}.transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": linear,
        # v2-inference.yaml: heads of 64 channels; v1-inference.yaml: 8 heads.
        "attention_head_dim": [max(1, n // 64) for n in channels] if linear else 8,
    }


def _autoencoder_config(state: State) -> dict[str, Any]:
    levels = range(_count(state, "encoder.down_blocks.#."))
    return {
        "in_channels": _shape(state, "encoder.conv_in.weight")[1],
        "out_channels": _shape(state, "decoder.conv_out.weight")[0],
        "block_out_channels": [
            _shape(state, f"encoder.down_blocks.{i}.resnets.0.conv2.weight")[0] for i in levels
        ],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "layers_per_block": _count(state, "encoder.down_blocks.0.resnets.#."),
        "latent_channels": _shape(state, "post_quant_conv.weight")[1],
        "scaling_factor": 0.18215,
    }


def _text_config(state: State, open_clip: bool) -> dict[str, Any]:
    tokens, width = _shape(state, "text_model.embeddings.token_embedding.weight")
    return {
        "model_type": "clip_text_model",
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": _shape(state, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(state, "text_model.encoder.layers.#."),
        "num_attention_heads": max(1, width // 64),  # of both flavours
        "max_position_embeddings": _shape(state, "text_model.embeddings.position_embedding.weight")[
            0
        ],
        "hidden_act": "gelu" if open_clip else "quick_gelu",
    }
