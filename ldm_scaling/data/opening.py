"""The one door to all kinds of sources."""

import os
from pathlib import Path
from typing import Any

from ldm_scaling.data import tfds_source
from ldm_scaling.data.folder import FolderSource
from ldm_scaling.data.source import DataError, Source


def open_source(name: str | os.PathLike, split: str = "train", **options: Any) -> Source:
    """Opens captioned images wherever they are.

    Args:
      name: "noto_emoji" for the packaged set; the path of a folder of images with
        `metadata.jsonl` or `captions.jsonl` (`FolderSource`); the path of a prepared TFDS data
        set, with or without its version; or the name of a TFDS data set, such as
        "coco_captions" (`tfds_source.open_tfds`).
      split: "train" or "test"; for TFDS also "train[:10%]", "all" and the like.
      **options: keyword arguments of `FolderSource` or `tfds_source.open_tfds`.

    Raises:
      DataError: nothing usable there; the message says what was looked for.
    """
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        prepared = tfds_source.find_prepared(path)
        if prepared is None:
            return FolderSource(path, split, **options)
        return tfds_source.open_tfds(prepared, split, **options)
    if not path.is_dir() and (path.is_absolute() or str(name).startswith((".", "~"))):
        raise DataError(f"name={str(name)!r}: no such folder")
    if str(name) == "noto_emoji" and "data_dir" not in options:
        return tfds_source.open_tfds(tfds_source.packaged("noto_emoji"), split, **options)
    return tfds_source.open_tfds(path, split, **options)
