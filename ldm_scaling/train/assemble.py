"""From a config to the task and the batches of a run: the only place that knows all tasks."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_scaling.data import Pipeline, Source, image_transform, open_source
from ldm_scaling.encoders import AutoencoderConfig
from ldm_scaling.tasks.autoencoder import AutoencoderLoss, AutoencoderTask
from ldm_scaling.tasks.base import Task

SAMPLE_IMAGES = 1024
"""Training images on which an autoencoder's `scaling_factor` is measured."""

Config = TypeVar("Config")


def assemble(config: ConfigDict, workdir: Path, mesh: Mesh) -> tuple[Task, Pipeline, Pipeline]:
    """The task of `config.task`, its training batches and its validation batches.

    Raises:
      ValueError: for an unknown task or model field; names the nearest.
    """
    del workdir, mesh
    builders = {"autoencoder": _autoencoder}
    if config.task not in builders:
        raise ValueError(f"task={config.task!r}: {_nearest(config.task, builders)}")
    return builders[config.task](config)


def _autoencoder(config: ConfigDict) -> tuple[Task, Pipeline, Pipeline]:
    source, held_out = _sources(config)
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
    return task, _pipeline(config, source, augment), _pipeline(config, held_out, shrink)


def _sources(config: ConfigDict) -> tuple[Source, Source]:
    data = config.data
    return open_source(data.name, data.train_split), open_source(data.name, data.validation_split)


def _pipeline(config: ConfigDict, source: Source, transform: Any = None) -> Pipeline:
    return Pipeline(
        source,
        config.batch_size,
        config.seed,
        transform,
        workers=config.data.workers,
        shard=(jax.process_index(), jax.process_count()),
    )


def from_fields(cls: type[Config], fields: ConfigDict) -> Config:
    """`cls(**fields)` with lists as tuples; an unknown field is an error that names the nearest."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in fields:
        if name not in names:
            raise ValueError(f"{cls.__name__}.{name}: {_nearest(name, names)}")
    plain = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields.items()}
    return cls(**plain)


def _nearest(name: str, names: Any) -> str:
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return f"the nearest is {nearest!r}, all are {', '.join(names)}"
