"""A model small enough for tests, with random weights also where training starts at zero."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldm_scaling.checkpoint.diffusers import export_autoencoder, export_unet
from ldm_scaling.checkpoint.pipeline_folder import write_model_index, write_scheduler
from ldm_scaling.diffusion import Schedule
from ldm_scaling.encoders import Autoencoder, AutoencoderConfig
from ldm_scaling.evaluation import FeatureNetwork, Lite0, Model, ModelCard, TextEncoder
from ldm_scaling.unet import UNet, UNetConfig
from tests.encoders.vocabularies import clip_folder

UNET = UNetConfig(
    in_channels=4,
    out_channels=4,
    sample_size=4,
    block_out_channels=(8,),
    layers_per_block=1,
    attention_levels=(False,),  # the middle has attention
    heads=2,
    context_size=384,
    norm_groups=4,
    prediction_type="v_prediction",
)
AUTOENCODER = AutoencoderConfig(
    latent_channels=4,
    block_out_channels=(8, 8),
    layers_per_block=1,
    norm_groups=4,
    mid_attention=False,
)
SCHEDULE = Schedule.zero_terminal_snr()


def randomized(tree, seed, scale=1.0):
    """Every leaf redrawn, so that no output is zero or constant by initialisation."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    drawn = [
        scale * rng.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, [leaf.astype(np.float32) for leaf in drawn])


def tiny_params(seed=0):
    latents, context = jnp.zeros((1, 4, 4, 4)), jnp.zeros((1, 3, 384))
    key = jax.random.key(0)
    unet = jax.eval_shape(UNet(UNET).init, key, latents, jnp.zeros(1), context)
    autoencoder = jax.eval_shape(Autoencoder(AUTOENCODER).init, key, jnp.zeros((1, 8, 8, 3)))
    return {
        "unet": randomized(unet["params"], seed),
        # Scaled so that few pixels saturate: differences between images stay visible.
        "autoencoder": randomized(autoencoder["params"], 99, scale=0.5),
    }


@pytest.fixture(scope="session")
def tiny_model():
    return Model(
        card=ModelCard(Path(), "micro", 8, 0, None, None, {}, ""),
        unet=UNET,
        autoencoder=AUTOENCODER,
        params=tiny_params(),
        schedule=SCHEDULE,
        text_encoder=TextEncoder.__new__(TextEncoder),  # drawing takes contexts, not captions
    )


class HashedText(TextEncoder):
    """A context that only the caption decides, without a network; zero at padding."""

    def __init__(self):
        self.max_tokens = 24

    def __call__(self, captions):
        context = np.zeros((len(captions), 3, 384), np.float32)
        for row, caption in zip(context, captions, strict=True):
            row[:2] = np.random.default_rng(list(caption.encode())).normal(size=(2, 384))
        return context

    def cached(self, captions, folder):
        return self(captions)


class ProjectedPixels(Lite0):
    """Features that are a fixed random projection of the pixels: metrics need no network's."""

    def __init__(self, size):
        pass

    def __call__(self, images):
        weights = np.random.default_rng(0).normal(size=(images[0].size, 12))
        return (images.reshape(len(images), -1) / 255.0 @ weights).astype(np.float32)

    def cached(self, images, folder):
        return self(images)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A folder of 16 training and 8 test images, 8 x 8 pixels of one colour and noise."""
    root = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        (root / split).mkdir()
        lines = []
        for i in range(count):
            pixels = rng.integers(0, 200, size=3) + rng.integers(0, 50, size=(8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"{i}.png")
            lines.append(json.dumps({"file_name": f"{i}.png", "caption": f"{split} caption {i}"}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Two folders in the diffusers layout; the second is a later checkpoint of the first."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("early", "late")):
        folder, params = root / name, tiny_params(seed)
        export_unet(UNET, params["unet"], folder / "unet")
        export_autoencoder(AUTOENCODER, params["autoencoder"], folder / "vae")
        write_scheduler(folder, {**SCHEDULE.to_config(), "timestep_spacing": "trailing"})
        write_model_index(
            folder,
            {
                "unet": ("diffusers", "UNet2DConditionModel"),
                "vae": ("diffusers", "AutoencoderKL"),
                "scheduler": ("diffusers", "DDIMScheduler"),
                "text_encoder": ("ldm_scaling", "minilm"),
            },
        )
        facts = {"family": "micro", "width": 8, "step": 100 * (seed + 1), "training_flops": 1e9}
        (folder / "training.json").write_text(json.dumps(facts))
    return root


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """annotations/captions_val2014.json and val2014/: 12 images of many sizes, 3 captions each."""
    root, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    (root / "annotations").mkdir()
    (root / "val2014").mkdir()
    images, annotations = [], []
    for i in range(12):
        file = f"COCO_val2014_{i:012d}.jpg"
        size = (20 + 3 * i, 50 - 2 * i, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(root / "val2014" / file)
        images.append({"id": 100 + i, "file_name": file})
    for place, n in enumerate(rng.permutation(36)):
        image = 100 + place % 12
        annotations.append({"id": int(n), "image_id": image, "caption": f"caption {n}"})
    content = json.dumps({"images": images, "annotations": annotations})
    (root / "annotations" / "captions_val2014.json").write_text(content)
    return root


class Pixels(FeatureNetwork):
    """In Inception's place: mean colours of three quarters."""

    def __init__(self, mode):
        def network(params, images):
            quarters = images.astype(jnp.float32).reshape(len(images), 2, 4, 2, 4, 3)
            return quarters.mean((2, 4)).reshape(len(images), -1)[:, :9]

        super().__init__(f"inception_{mode}", 9, network, {}, batch_size=4, mesh=None)

    def _fit(self, image):
        return np.asarray(Image.fromarray(image).resize((8, 8)))


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory):
    """A small pipeline as Stable Diffusion 1.x is laid out: random weights, CLIP, epsilon.

    Some parameters of its UNet are large enough to be spread over the fsdp axis.
    """
    folder = tmp_path_factory.mktemp("stable_diffusion")
    config = dataclasses.replace(
        UNET,
        block_out_channels=(64,),
        context_size=32,
        prediction_type="epsilon",
    )
    shapes = ((1, 4, 4, 4), (1,), (1, 3, 32))
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    unet = jax.eval_shape(UNet(config).init, jax.random.key(0), *shapes)["params"]
    export_unet(config, randomized(unet, 0), folder / "unet")
    export_autoencoder(AUTOENCODER, tiny_params()["autoencoder"], folder / "vae")
    clip_folder(folder / "text_encoder", folder / "tokenizer", width=32, longest=77)
    scheduler = {**Schedule.scaled_linear().to_config(), "steps_offset": 1}
    write_scheduler(folder, {**scheduler, "prediction_type": "epsilon"})
    write_model_index(
        folder,
        {
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "scheduler": ("diffusers", "PNDMScheduler"),
            "text_encoder": ("transformers", "CLIPTextModel"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
        },
    )
    return folder
