"""Whole pipelines from one layout to another, a network at a time: what `launch/convert.py` does.

The result is a folder that `diffusers.StableDiffusionPipeline.from_pretrained` and this library
open. It comes into being under another name and is moved at the end, so it is whole or not there.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import logging

from ldm_scaling.checkpoint.diffusers import (
    export_autoencoder,
    export_text_encoder,
    export_unet,
    import_autoencoder,
    import_text_encoder,
    import_unet,
)
from ldm_scaling.checkpoint.packaged import MICRO_MAX_TOKENS, load_minilm
from ldm_scaling.checkpoint.pipeline_folder import (
    read_model_index,
    read_scheduler,
    write_model_index,
    write_scheduler,
)
from ldm_scaling.checkpoint.single_file import open_single_file
from ldm_scaling.checkpoint.weights_file import read_json, write_json
from ldm_scaling.encoders.text import library_names
from ldm_scaling.naming import check_name

PREDICTION_TYPES = ("epsilon", "v_prediction")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model"),
)

# v1-inference.yaml and v2-inference.yaml of the original code, and what diffusers makes of them.
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


def convert_folder(source: Path, output: Path, *, vae: Path, dtype: str = "float32") -> None:
    """Writes a pipeline's folder anew, with all it needs in it and weights of one type.

    The length of the contexts it was trained with becomes the tokenizer's, from which any reader
    takes it: padding that a network has not seen in training changes its images.

    Args:
      source: a folder with model_index.json.
      output: made; must not exist, or be empty.
      vae: folder of the autoencoder, which a family may share.
      dtype: of the stored weights: "float32", "float16" or "bfloat16".

    Raises:
      FileNotFoundError, ValueError: what is missing or does not fit, by name.
    """
    index = read_model_index(source)
    facts = source / "training.json"
    max_tokens = read_json(facts).get("max_tokens") if facts.is_file() else None
    with _made(output) as folder:
        config, params = import_unet(source / "unet")
        export_unet(config, params, folder / "unet", dtype)
        write_scheduler(folder, read_scheduler(source))
        vae_config, params = import_autoencoder(vae)
        export_autoencoder(vae_config, params, folder / "vae", dtype)
        if index.get("text_encoder") == ("ldm_scaling", "minilm"):
            text_config, params, tokenizer = load_minilm()
            max_tokens = max_tokens or MICRO_MAX_TOKENS
        else:
            text_config, params = import_text_encoder(source / "text_encoder")
            tokenizer = source / "tokenizer"
        export_text_encoder(text_config, params, folder / "text_encoder", dtype)
        _copy_tokenizer(tokenizer, folder / "tokenizer", max_tokens)
        if facts.is_file():
            shutil.copyfile(facts, folder / "training.json")
        _write_index(folder, library_names(text_config), index.get("scheduler"))


def convert_single_file(
    source: Path,
    output: Path,
    *,
    tokenizer: Path,
    prediction_type: str | None = None,
    sample_size: int = 64,
    dtype: str = "float32",
) -> None:
    """Writes the folder of a pipeline that came as one file.

    Args:
      source: see `single_file.open_single_file`.
      output, dtype: as for `convert_folder`.
      tokenizer: folder with CLIP's, which the file does not hold.
      prediction_type: what the UNet predicts, "epsilon" or "v_prediction". The file does not say:
        the models of Stable Diffusion 2 for 768 pixels predict v, all others epsilon, which is
        assumed where nothing is given.
      sample_size: side of the latents; 96 for 768 pixels.

    Raises: as `convert_folder` and `open_single_file`.
    """
    if prediction_type is None:
        prediction_type = "epsilon"
        logging.warning(
            "%s does not say what its UNet predicts, and is taken to predict the noise; give "
            "prediction_type=v_prediction for Stable Diffusion 2 of 768 pixels",
            source,
        )
    check_name("prediction_type", prediction_type, PREDICTION_TYPES)
    found = open_single_file(source, sample_size)
    with _made(output) as folder:
        note = {**found.unet_config, "_prediction_type": prediction_type}
        config, params = import_unet(found.unet, note)
        export_unet(config, params, folder / "unet", dtype)
        write_scheduler(folder, {**_SCHEDULER, "prediction_type": prediction_type})
        vae_config, params = import_autoencoder(found.autoencoder, found.autoencoder_config)
        export_autoencoder(vae_config, params, folder / "vae", dtype)
        text_config, params = import_text_encoder(found.text_encoder, found.text_encoder_config)
        export_text_encoder(text_config, params, folder / "text_encoder", dtype)
        _copy_tokenizer(tokenizer, folder / "tokenizer")
        _write_index(folder, library_names(text_config), None)


def _write_index(
    folder: Path, text_classes: tuple[str, str], scheduler: tuple[str, str] | None
) -> None:
    encoder, tokenizer = text_classes
    write_model_index(
        folder,
        {
            "unet": ("diffusers", "UNet2DConditionModel"),
            "scheduler": scheduler or ("diffusers", "DDIMScheduler"),
            "vae": ("diffusers", "AutoencoderKL"),
            "text_encoder": ("transformers", encoder),
            "tokenizer": ("transformers", tokenizer),
        },
    )


def _copy_tokenizer(source: Path, target: Path, max_tokens: int | None = None) -> None:
    there = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not there:
        raise FileNotFoundError(
            f"tokenizer={source}: none of {', '.join(TOKENIZER_FILES)} is there"
        )
    target.mkdir(parents=True)
    for name in there:
        shutil.copyfile(source / name, target / name)
    if max_tokens is not None:
        config = target / "tokenizer_config.json"
        others = read_json(config) if config.is_file() else {}
        write_json(config, {**others, "model_max_length": max_tokens})


@contextmanager
def _made(output: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `output` when all went well."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output={output}: is there already; give another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
