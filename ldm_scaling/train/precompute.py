"""Encodes a config's images and captions ahead of its training."""

import os
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from ldm_scaling.sharding import make_mesh
from ldm_scaling.train.assemble import frozen_parts, make_encoder, open_sources, split_folder
from ldm_scaling.train.cache import SHARD_EXAMPLES, encode


def precompute(
    config: ConfigDict,
    output: str | os.PathLike[str] = "",
    *,
    dtype: str = "auto",
    shard_examples: int = SHARD_EXAMPLES,
    process: tuple[int, int] = (0, 1),
) -> Path:
    """Makes the encoded sets that training with `config.cache=True` and this folder reads.

    Args:
      config: as `configs/pretrain.py` makes it; both of its splits are encoded.
      output: folder; "" for `config.cache_dir`, or else NAME-encoded beside the folder data.name.
      dtype, shard_examples, process: see `cache.encode`. Processes need not know of each other.

    Returns:
      The folder.

    Raises:
      ValueError: nothing says where to write, or what the parts of it raise.
    """
    if config.task != "pretrain":
        raise ValueError(f"task={config.task!r}: only 'pretrain' has latents to compute ahead")
    folder = result_folder(config, output)
    sources = open_sources(config)
    encoder = make_encoder(config, frozen_parts(config), make_mesh(**config.mesh))
    splits = (config.data.train_split, config.data.validation_split)
    for split, source in zip(splits, sources, strict=True):
        if source is not None:
            encode(
                split_folder(folder, split),
                encoder,
                source,
                dtype=dtype,
                shard_examples=shard_examples,
                process=process,
            )
    logging.info("Train on it with --config.cache=True --config.cache_dir=%s", folder)
    return folder


def result_folder(config: ConfigDict, output: str | os.PathLike[str] = "") -> Path:
    """`output`, or `config.cache_dir`, or a folder beside that of `config.data.name`."""
    if output or config.cache_dir:
        return Path(output or config.cache_dir)
    name = config.data.name
    source = Path(os.path.expanduser(name)).absolute()
    if not name or not source.is_dir():
        raise ValueError(f"output='': data.name={name!r} is no folder to write beside; give one")
    return source.with_name(source.name + "-encoded")
