"""What scores images: features of FID's Inception, and CLIP's embeddings of images and captions."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import CAPTIONS, IMAGES, Call, Case, Side, random_params, torch_arrays

WEIGHTS = "weights.safetensors"


def write_state(folder: Path, params: Any) -> None:
    """Weights under their names in the files of PyTorch."""
    from safetensors.numpy import save_file

    from ldm_scaling.checkpoint import names

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: np.asarray(x, order="C") for name, x in names.to_file(params).items()}
    save_file(state, folder / WEIGHTS)


def read_params(folder: Path, template: Any) -> Any:
    """What `write_state` wrote."""
    from safetensors.numpy import load_file

    from ldm_scaling.checkpoint import names

    return names.from_file(template, load_file(folder / WEIGHTS), str(folder))


def photographs(side: int) -> np.ndarray:
    """uint8 [IMAGES, side, side, 3]: noise, for speed does not depend on what is seen."""
    shape = (IMAGES, side, side, 3)
    return np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)


# --- Inception


@functools.cache
def inception_module() -> Any:
    from ldm_scaling.encoders import InceptionV3

    return InceptionV3()


def write_inception(folder: Path) -> None:
    import jax

    params = random_params(inception_module(), np.zeros((1, 299, 299, 3), np.float32))

    def positive(path: Any, leaf: np.ndarray) -> np.ndarray:
        return np.abs(leaf) if path[-1].key == "var" else leaf  # variances

    write_state(folder, jax.tree.map_with_path(positive, params))


def inception_pytorch_fid(folder: Path) -> Call:
    import torch
    from pytorch_fid import inception
    from safetensors.torch import load_file

    torch.set_grad_enabled(False)
    state = load_file(folder / WEIGHTS)
    inception.load_state_dict_from_url = lambda *_, **__: state
    network = inception.InceptionV3([3]).eval()
    (images,) = torch_arrays(photographs(299))
    return lambda: network(images.float() / 255)[0]


def inception_ours(folder: Path) -> Call:
    import jax

    from ldm_scaling.evaluation import Inception

    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    template = jax.eval_shape(inception_module().init, jax.random.key(0), image)["params"]
    network = Inception(read_params(folder, template), "legacy", IMAGES)
    images = photographs(299)
    return lambda: network(images)


def inception() -> Case:
    def flops() -> float:
        import jax

        from ldm_scaling.unet.flops import count_flops

        module = inception_module()
        images = jax.ShapeDtypeStruct((IMAGES, 299, 299, 3), np.float32)
        params = jax.eval_shape(module.init, jax.random.key(0), images)
        return float(count_flops(module.apply, params, images))

    return Case(
        f"FID's features of {IMAGES} images",
        write_inception,
        {
            "pytorch-fid": Side(inception_pytorch_fid, ("torch", "torchvision", "pytorch_fid")),
            "ldm_scaling": Side(inception_ours),
        },
        flops,
    )


# --- CLIP ViT-B/16

TEXT = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8}
VISION = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}


@functools.cache
def clip_module() -> Any:
    from ldm_scaling.encoders import Clip, ClipConfig
    from ldm_scaling.encoders.clip import ClipTextConfig
    from ldm_scaling.encoders.clip_vision import ClipVisionConfig

    text = ClipTextConfig(**TEXT, intermediate_size=2048)
    return Clip(ClipConfig(text, ClipVisionConfig(**VISION, intermediate_size=3072), 512))


def clip_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Normalised pixels, and captions of 77 tokens each that end with the last one."""
    rng = np.random.default_rng(3)
    pixels = rng.normal(size=(IMAGES, 224, 224, 3)).astype(np.float32)
    ids = rng.integers(1, 49000, (CAPTIONS, 77), dtype=np.int32)
    ids[:, -1] = 49407
    return pixels, ids


def clip_shapes() -> Any:
    import jax

    pixels, ids = clip_inputs()
    mask = np.ones(ids.shape, bool)
    return jax.eval_shape(clip_module().init, jax.random.key(0), pixels, ids, mask)["params"]


def write_clip(folder: Path) -> None:
    import jax

    rng = np.random.default_rng(0)
    draw = lambda s: rng.normal(0, 0.02, s.shape).astype(np.float32)  # noqa: E731
    write_state(folder, jax.tree.map(draw, clip_shapes()))


def clip_transformers(folder: Path) -> Call:
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    torch.set_grad_enabled(False)
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=512)
    model = CLIPModel(config).eval()
    model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    pixels, ids = torch_arrays(*clip_inputs())

    def call() -> object:
        found = model(input_ids=ids.long(), pixel_values=pixels)
        return (found.image_embeds * found.text_embeds).sum(1)

    return call


def clip_ours(folder: Path) -> Call:
    import jax

    module, params = clip_module(), read_params(folder, clip_shapes())

    @jax.jit
    def cosines(params, pixels, ids, mask):
        shown = module.apply({"params": params}, pixels, method="embed_images")
        told = module.apply({"params": params}, ids, mask, method="embed_texts")
        return (shown * told).sum(1)

    pixels, ids = clip_inputs()
    arrays = jax.device_put((params, pixels, ids, np.ones(ids.shape, bool)))
    return lambda: jax.block_until_ready(cosines(*arrays))


def clip() -> Case:
    def flops() -> float:
        from ldm_scaling.unet.flops import count_flops

        pixels, ids = clip_inputs()
        variables = {"params": clip_shapes()}
        return float(count_flops(clip_module().apply, variables, pixels, ids, ids > 0))

    return Case(
        f"CLIP ViT-B/16's cosines of {IMAGES} images and captions",
        write_clip,
        {
            "transformers": Side(clip_transformers, ("torch", "transformers")),
            "ldm_scaling": Side(clip_ours),
        },
        flops,
    )
