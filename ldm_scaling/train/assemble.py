"""From a config to the task and the batches of a run: the only place that knows all tasks."""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_scaling.checkpoint.diffusers import import_autoencoder, import_text_encoder
from ldm_scaling.checkpoint.hub import find_model_folder
from ldm_scaling.checkpoint.packaged import MODELS, load_minilm
from ldm_scaling.data import Pipeline, Source, Transform, image_transform, open_source
from ldm_scaling.diffusion import Schedule
from ldm_scaling.encoders import AutoencoderConfig, BertConfig, TextConfig
from ldm_scaling.encoders.text import library_names
from ldm_scaling.encoders.tokenizers import Tokenizer, load_tokenizer
from ldm_scaling.naming import check_name
from ldm_scaling.records import measurement_hash
from ldm_scaling.sharding import local_rows
from ldm_scaling.tasks import (
    AutoencoderLoss,
    AutoencoderTask,
    FrozenEncoders,
    PretrainTask,
    Task,
)
from ldm_scaling.train.cache import Encoder, encoded_source, encoding_mesh
from ldm_scaling.train.workdir import flatten
from ldm_scaling.types import Params
from ldm_scaling.unet import UNetConfig, micro_config, unet_config

Assembly: TypeAlias = tuple[Task, Pipeline, Pipeline | None]

SAMPLE_IMAGES = 1024
"""Training images on which an autoencoder's `scaling_factor` is measured."""

Config = TypeVar("Config")


def assemble(config: ConfigDict, workdir: Path, mesh: Mesh) -> Assembly:
    """The task of `config.task`, its training batches, and its validation batches if any.

    Raises:
      ValueError: for an unknown task or model field; names the nearest.
    """
    builders = {"autoencoder": _autoencoder, "pretrain": _pretrain}
    return builders[check_name("task", config.task, builders)](config, workdir, mesh)


def _autoencoder(config: ConfigDict, workdir: Path, mesh: Mesh) -> Assembly:
    source, held_out = open_sources(config)
    size = config.data.image_size
    shrink = image_transform(size)
    chosen = np.linspace(0, len(source) - 1, min(SAMPLE_IMAGES, len(source))).astype(int)
    examples = [shrink(source[int(i)], np.random.default_rng(0)) for i in chosen]
    images = np.stack([example["image"] for example in examples]).astype(np.float32) / 127.5 - 1
    task = AutoencoderTask(
        from_fields(AutoencoderConfig, config.model),
        from_fields(AutoencoderLoss, config.loss),
        images,
        family=config.family,
    )
    augment = image_transform(size, crop="random", flip=config.data.flip)
    validation = _pipeline(config, held_out, shrink, mesh) if held_out else None
    return task, _pipeline(config, source, augment, mesh), validation


def _pretrain(config: ConfigDict, workdir: Path, mesh: Mesh) -> Assembly:
    frozen = frozen_parts(config)
    training: Source
    held_out: Source | None
    if config.cache:
        folder = Path(config.cache_dir or workdir / "cache")
        training, held_out = _encoded_sources(config, folder, frozen, mesh)
        transform = None
    else:
        training, held_out = open_sources(config)
        transform = image_transform(config.data.image_size, caption=config.data.caption)
    task = PretrainTask(
        _unet(config, frozen.encoders.autoencoder),
        Schedule.from_name(config.diffusion.schedule),
        frozen.encoders.autoencoder,
        frozen.encoders.unconditional_context(frozen.params),
        encoders=None if config.cache else frozen.encoders,
        encoder_params=None if config.cache else frozen.params,
        weighting=config.diffusion.weighting,
        gamma=config.diffusion.gamma,
        caption_dropout=config.caption_dropout,
        spacing=config.diffusion.spacing,
        family=config.family,
        companions=frozen.folders,
        index=frozen.entries,
    )
    # The frozen encoders take bytes: a quarter of what would otherwise go to the devices.
    validation = _pipeline(config, held_out, transform, mesh, floats=False) if held_out else None
    return task, _pipeline(config, training, transform, mesh, floats=False), validation


class FrozenParts(NamedTuple):
    """What a pretraining run does not train, and how an exported pipeline names it."""

    encoders: FrozenEncoders
    params: Params
    folders: dict[str, Path]
    entries: dict[str, tuple[str, str]]


def frozen_parts(config: ConfigDict) -> FrozenParts:
    """Loads the autoencoder and the text encoder of a config."""
    name = _required(config, "autoencoder", "'micro' (packaged), or a folder of an AutoencoderKL")
    vae = MODELS / "vae" if name == "micro" else find_model_folder(name, "autoencoder")
    autoencoder, autoencoder_params = import_autoencoder(vae)
    text = _text_encoder(config)
    encoder = _computing(text.config, config.text_encoder_dtype)
    return FrozenParts(
        FrozenEncoders(autoencoder, encoder, text.tokenizer, config.max_tokens),
        {"autoencoder": autoencoder_params, "text_encoder": text.params},
        {"vae": vae, **text.folders},
        text.entries,
    )


def make_encoder(config: ConfigDict, frozen: FrozenParts, mesh: Mesh) -> Encoder:
    """What encodes a config's images and captions ahead of training.

    Raises:
      ValueError: captions are drawn anew in each pass, which cannot be done ahead.
    """
    if config.data.caption != "first":
        raise ValueError(
            f"data.caption={config.data.caption!r}: a cache holds one caption an image; set "
            "--config.data.caption=first or --config.cache=False"
        )
    size = config.data.image_size
    mesh = encoding_mesh(mesh)
    return Encoder(frozen.encoders, frozen.params, size, image_transform(size), mesh)


def split_folder(folder: Path, split: str) -> Path:
    """Where the encoded set of a split lies; any split has a name of its own."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", split)
    return folder / (plain if plain == split else f"{plain}-{measurement_hash(split=split)[:8]}")


def _encoded_sources(
    config: ConfigDict, folder: Path, frozen: FrozenParts, mesh: Mesh
) -> tuple[Source, Source | None]:
    """Of both splits. Without data.name, from the folder alone: the images may be elsewhere."""
    encoder = make_encoder(config, frozen, mesh)
    splits = (config.data.train_split, config.data.validation_split)
    sources = open_sources(config) if config.data.name or not folder.is_dir() else (None, None)
    training, *held_out = (
        encoded_source(split_folder(folder, split), encoder, source)
        for split, source in zip(splits, sources, strict=True)
        if split
    )
    return training, held_out[0] if held_out else None


def _unet(config: ConfigDict, autoencoder: AutoencoderConfig) -> UNetConfig:
    families = {"paper": unet_config, "micro": micro_config}
    return families[check_name("family", config.family, families)](
        config.width,
        in_channels=autoencoder.latent_channels,
        out_channels=autoencoder.latent_channels,
        sample_size=config.data.image_size // autoencoder.factor,
        **config.model,
    )


class TextEncoder(NamedTuple):
    """A text encoder with its weights, and how an exported pipeline names it."""

    config: TextConfig
    params: Params
    tokenizer: Tokenizer
    folders: dict[str, Path]
    entries: dict[str, tuple[str, str]]


def _text_encoder(config: ConfigDict) -> TextEncoder:
    wanted = "'minilm', or the folder of a text encoder or of a pipeline that has one"
    name = _required(config, "text_encoder", wanted)
    if name == "minilm":
        encoder, params, folder = load_minilm()
        entries = {"text_encoder": ("ldm_scaling", "minilm")}
        return TextEncoder(encoder, params, load_tokenizer(folder), {}, entries)
    # A pipeline has folders of both; one that holds the model alone holds its tokenizer beside it.
    parts, home = ("text_encoder", "tokenizer"), find_model_folder(name, "text_encoder")
    folders = {part: home / part if (home / parts[0]).is_dir() else home for part in parts}
    encoder, params = import_text_encoder(folders["text_encoder"])
    classes = zip(parts, library_names(encoder), strict=True)
    entries = {part: ("transformers", class_name) for part, class_name in classes}
    return TextEncoder(encoder, params, load_tokenizer(folders["tokenizer"]), folders, entries)


def _computing(encoder: TextConfig, dtype: str) -> TextConfig:
    """The encoder with its products in `dtype`; what comes out is float32."""
    check_name("text_encoder_dtype", dtype, ("float32", "bfloat16"))
    if isinstance(encoder, BertConfig):
        if dtype != "float32":
            raise ValueError(f"text_encoder_dtype={dtype!r}: a BERT computes in 'float32' alone")
        return encoder
    return dataclasses.replace(encoder, dtype=dtype)


def _required(config: ConfigDict, field: str, wanted: str) -> str:
    value = flatten(config.to_dict())[field]
    if not value:
        raise ValueError(f"{field}='': give {wanted} (--config.{field}=...)")
    return value


def open_sources(config: ConfigDict) -> tuple[Source, Source | None]:
    """The images and captions of both splits; None where the config names no second one."""
    data = config.data
    name = _required(config, "data.name", "a data set: 'noto_emoji', a folder, or a TFDS name")
    held_out = open_source(name, data.validation_split) if data.validation_split else None
    return open_source(name, data.train_split), held_out


def _pipeline(
    config: ConfigDict,
    source: Source,
    transform: Transform | None,
    mesh: Mesh,
    *,
    floats: bool = True,
) -> Pipeline:
    return Pipeline(
        source,
        config.batch_size,
        config.seed,
        transform,
        workers=config.data.workers,
        floats=floats,
        rows=local_rows(mesh, config.batch_size),
    )


def from_fields(cls: type[Config], fields: ConfigDict) -> Config:
    """`cls(**fields)` with lists as tuples; an unknown field is an error that names the nearest."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in fields:
        check_name(f"field of {cls.__name__}", name, names)
    plain = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields.items()}
    return cls(**plain)
