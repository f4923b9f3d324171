"""Goldens of DINOv2: transformers' models with small random weights, as they are in its files.

Needs torch and transformers, which imports torchvision where there is one.
"""

import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from . import _peers

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 20,
    "patch_size": 4,
}
CONFIGS = {
    "mlp": SMALL,
    "swiglu": {**SMALL, "hidden_size": 24, "num_hidden_layers": 1, "use_swiglu_ffn": True},
}
SIZES = ((20, 20), (12, 28))  # positions as they are, and fewer one way and more the other
META_OFFSET = 0.1


def make(out: Path) -> None:
    import torch

    torch.set_grad_enabled(False)
    for name, fields in CONFIGS.items():
        np.savez_compressed(out / f"encoders_dinov2_{name}.npz", **dinov2(fields))


def dinov2(fields: dict) -> dict[str, np.ndarray]:
    """Config and weights as saved, pixels, and states with positions of transformers and Meta."""
    import torch

    model = small_model("Dinov2Model", fields)
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for height, width in SIZES:
        pixels = rng.normal(size=(2, height, width, 3)).astype(np.float32)
        planar = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        size = f"{height}x{width}"
        arrays[f"pixels_{size}"] = pixels
        arrays[f"states_{size}"] = model(planar).last_hidden_state.numpy()
    with_metas_positions(model)
    arrays[f"metas_states_{size}"] = model(planar).last_hidden_state.numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = (Path(folder) / "config.json").read_text()
        state = safetensors.numpy.load_file(Path(folder) / "model.safetensors")
    halved = {f"state/{name}": array.astype(np.float16) for name, array in state.items()}
    return {"config": json.dumps(json.loads(config)), **halved, **arrays}


def small_model(kind: str, fields: dict):
    """A model of transformers of that class; positions are as large as patches and differ."""
    import torch

    if importlib.util.find_spec("torchvision"):
        _peers.import_torchvision()
    import transformers

    config = transformers.Dinov2Config(**fields, attn_implementation="eager")
    model = getattr(transformers, kind)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "embeddings.position" not in name:
                noise = noise / parameter[0].numel() ** 0.5
            elif parameter.ndim == 1:  # gains and layer scales are about 1, biases about 0
                noise = noise / 5 + name.endswith(("weight", "lambda1"))
            parameter.copy_(noise.half().float())  # half: smaller files
    return model


def with_metas_positions(model) -> None:
    """Interpolates as facebookresearch/dinov2 does, dinov2/models/vision_transformer.py."""
    import torch

    embeddings = model.embeddings
    patch, side = embeddings.patch_size, model.config.image_size // embeddings.patch_size

    def interpolate(_, height, width):
        square = embeddings.position_embeddings[:, 1:].unflatten(1, (side, side))
        scale = tuple((length // patch + META_OFFSET) / side for length in (height, width))
        scaled = torch.nn.functional.interpolate(
            square.permute(0, 3, 1, 2), scale_factor=scale, mode="bicubic"
        )
        rest = scaled.flatten(2).transpose(1, 2)
        return torch.cat([embeddings.position_embeddings[:, :1], rest], dim=1)

    embeddings.interpolate_pos_encoding = interpolate
