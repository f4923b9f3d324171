"""Goldens of the UNet: diffusers' UNet2DConditionModel on random weights.

Needs torch and diffusers. Each file holds config (JSON), the state dict, the inputs, the output
and, where asked, gradients of sum(output * cotangent).
"""

import json
from pathlib import Path

import numpy as np

PLANAR = (0, 3, 1, 2)
LAST = (0, 2, 3, 1)
SD1 = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16, 16),
    "attention_head_dim": 4,  # in diffusers' SD 1.x configs: the number of heads
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
SD2 = {
    **SD1,
    "attention_head_dim": (2, 4, 8, 4),
    "use_linear_projection": True,
    "layers_per_block": 1,
    "cross_attention_dim": 20,
}
MICRO = {
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (8, 16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 4,
}
WIDE_LATENTS = {
    **MICRO,
    "in_channels": 7,
    "out_channels": 3,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16, 16),
}
GOLDENS = {
    # name: (diffusers' config, prediction type, parameters whose gradients are stored)
    "sd1": (SD1, "epsilon", ()),
    "sd2": (SD2, "v_prediction", ()),
    "v_prediction": (WIDE_LATENTS, "v_prediction", ()),
    "micro": (
        MICRO,
        "v_prediction",
        (
            "conv_in.weight",
            "time_embedding.linear_1.weight",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            "down_blocks.0.downsamplers.0.conv.weight",
            "down_blocks.2.resnets.0.conv1.weight",
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
            "up_blocks.0.upsamplers.0.conv.weight",
            "up_blocks.1.resnets.0.norm1.weight",
            "up_blocks.2.attentions.1.norm.bias",
            "conv_out.bias",
        ),
    ),
}


def make(out: Path) -> None:
    """Writes unet_<name>.npz for each of `GOLDENS`."""
    for name, (config, prediction_type, gradients) in GOLDENS.items():
        np.savez_compressed(out / f"unet_{name}.npz", **_golden(config, prediction_type, gradients))


def _golden(config: dict, prediction_type: str, gradients: tuple[str, ...]) -> dict:
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    torch.set_grad_enabled(True)  # makers before this one turn gradients off
    model = UNet2DConditionModel(**config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # they start as ones and zeros, which would hide a mix-up
                parameter.add_(0.3 * torch.randn_like(parameter))
    rng = np.random.default_rng(0)
    size = config["sample_size"]
    # Not square, and a time between two steps: a mix-up or a rounding would show.
    x = rng.normal(size=(2, size, 2 * size, model.config.in_channels)).astype(np.float32)
    t = np.array([3.0, 870.5], np.float32)
    context = rng.normal(size=(2, 5, config["cross_attention_dim"])).astype(np.float32)
    y = model(torch.tensor(x.transpose(PLANAR)), torch.tensor(t), torch.tensor(context)).sample
    cotangent = rng.normal(size=np.shape(y.detach())).astype(np.float32)
    (y * torch.tensor(cotangent)).sum().backward()
    parameters = dict(model.named_parameters())
    return {
        "config": json.dumps(config),
        "prediction_type": prediction_type,
        "x": x,
        "t": t,
        "context": context,
        "output": y.detach().numpy().transpose(LAST),
        "cotangent": cotangent.transpose(LAST),
        **{f"state/{k}": v.numpy() for k, v in model.state_dict().items()},
        **{f"gradient/{k}": parameters[k].grad.numpy() for k in gradients},
    }
