"""Names in Stable Diffusion's single files beside those of diffusers, by diffusers' converters.

Needs torch, diffusers and transformers. Full-size networks without weights: names and shapes alone.
"""

import json
import re
from pathlib import Path

import numpy as np

SD1_UNET = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
SD2_UNET = {
    **SD1_UNET,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
OPEN_CLIP = {"layers": 24, "width": 1024, "vocabulary": 49408, "positions": 77}


def make(out: Path) -> None:
    arrays = {
        "unet_sd1": unet(SD1_UNET),
        "unet_sd2": unet(SD2_UNET),
        "vae": autoencoder(VAE),
        "open_clip": open_clip(**OPEN_CLIP),
    }
    np.savez_compressed(
        out / "checkpoint_single_file.npz", **{k: json.dumps(v) for k, v in arrays.items()}
    )


def pairs(original: dict, converted: dict, expected: dict) -> list:
    """[name there, shape there, name in diffusers]; `converted` holds the same tensor objects."""
    assert {k: v.shape for k, v in converted.items()} == expected
    homes = {int(tensor.flatten()[0]): name for name, tensor in original.items()}
    assert len(homes) == len(original)
    return sorted(
        [homes[int(tensor.flatten()[0])], list(original[homes[int(tensor.flatten()[0])]].shape), k]
        for k, tensor in converted.items()
    )


def numbered(shapes: dict):
    """Tensors that take no memory, each filled with a number of its own."""
    import torch

    return {
        name: torch.tensor(i, dtype=torch.int32).expand(shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


def shapes_of(kind: str, config: dict) -> dict:
    import diffusers
    import torch

    with torch.device("meta"):
        model = getattr(diffusers, kind)(**config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def unet(config: dict) -> list:
    """The names of openaimodel.py in CompVis/latent-diffusion, judged by diffusers' converter."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    expected = shapes_of("UNet2DConditionModel", config)
    original = numbered({original_unet_name(k): shape for k, shape in expected.items()})
    prefixed = {f"model.diffusion_model.{k}": v for k, v in original.items()}
    converted = convert_ldm_unet_checkpoint(prefixed, {"layers_per_block": 2})
    return pairs(original, converted, expected)


def original_unet_name(name: str) -> str:
    ends = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    stem, _, leaf = name.rpartition(".")
    if stem in ends:
        return f"{ends[stem]}.{leaf}"
    parts = name.split(".")
    rest = ".".join(parts[4:] if parts[0] != "mid_block" else parts[3:])
    for new, old in {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }.items():
        if "resnets" in parts:
            rest = re.sub(rf"^{new}\.", f"{old}.", rest)
    if parts[0] == "mid_block":
        return f"middle_block.{1 if parts[1] == 'attentions' else 2 * int(parts[2])}.{rest}"
    level, kind, layer = int(parts[1]), parts[2], int(parts[3])
    if parts[0] == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{3 * level + 3}.0.op.{leaf}"
        return f"input_blocks.{3 * level + layer + 1}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":  # after the attention, where the level has one
        return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.{rest}"
    return f"output_blocks.{3 * level + layer}.{int(kind == 'attentions')}.{rest}"


def autoencoder(config: dict) -> list:
    """The names of diffusionmodules/model.py there, judged likewise."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    expected = shapes_of("AutoencoderKL", config)
    shapes = {}
    for name, shape in expected.items():
        old = original_autoencoder_name(name)
        attention = ".attn_1." in old and len(shape) == 2
        shapes[old] = (*shape, 1, 1) if attention else shape
    original = numbered(shapes)
    prefixed = {f"first_stage_model.{k}": v for k, v in original.items()}
    return pairs(original, convert_ldm_vae_checkpoint(prefixed, config), expected)


def original_autoencoder_name(name: str) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for new, old in {
        "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
        "mid_block.attentions.0.to_q": "mid.attn_1.q",
        "mid_block.attentions.0.to_k": "mid.attn_1.k",
        "mid_block.attentions.0.to_v": "mid.attn_1.v",
        "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
    }.items():
        name = name.replace(new, old)
    return name


def open_clip(layers: int, width: int, vocabulary: int, positions: int) -> list:
    """The names of open_clip's text tower -> transformers'; the last layer is not Stable
    Diffusion's. [name there, shape there, [names in transformers]]."""
    import types

    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    layer = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    shapes = {
        "token_embedding.weight": (vocabulary, width),
        "positional_embedding": (positions, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, width),
        "logit_scale": (),
        **{
            f"transformer.resblocks.{i}.{name}": shape
            for i in range(layers)
            for name, shape in layer.items()
        },
    }
    original = numbered(shapes)
    prefixed = {f"cond_stage_model.model.{k}": v for k, v in original.items()}
    model = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=width))
    converted = convert_open_clip_checkpoint(model, prefixed)
    homes: dict[int, list[str]] = {}
    for name, tensor in sorted(converted.items()):
        if name != "text_projection.weight":
            homes.setdefault(int(tensor.flatten()[0]), []).append(name)
    return [[name, list(shape), homes.get(i, [])] for i, (name, shape) in enumerate(shapes.items())]
