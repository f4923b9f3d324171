"""Prepared TFDS data sets by random access, read without TensorFlow."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_scaling.data.images import array_to_rgb, decode_rgb
from ldm_scaling.data.source import DataError, Example


def packaged(name: str) -> Path:
    """Folder of the prepared data set `name` that ships with the library."""
    folder = find_prepared(Path(__file__).parents[1] / "assets" / name)
    if folder is None:
        raise DataError(f"name={name!r}: no such packaged data set; is the install complete?")
    return folder


def find_prepared(folder: Path) -> Path | None:
    """The folder itself where it holds a prepared version, else its newest version; else None."""
    if (folder / "dataset_info.json").is_file():
        return folder
    found = {
        tuple(int(part) for part in path.parent.name.split(".")): path.parent
        for path in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    }
    return found[max(found)] if found else None


def open_tfds(
    name: str | os.PathLike,
    split: str = "train",
    *,
    data_dir: str | None = None,
    image_key: str = "image",
    caption_key: str = "caption",
) -> "TfdsSource":
    """Opens a prepared TFDS data set.

    Args:
      name: TFDS name, "name/config:version" included, or the folder of a prepared version.
      split: any split that TFDS knows, such as "train", "test[:50%]", "all".
      data_dir: where TFDS keeps its data; TFDS's own default if None.
      image_key: feature with the image.
      caption_key: feature with the caption. A class label gives its name. Of a sequence the first
        is the caption, and all are under "captions" (`transforms.random_caption` draws). Features
        inside others are written with a slash: "captions/text" for COCO.

    Raises:
      DataError: not there, not prepared as array_record, or no such split or feature.
    """
    import tensorflow_datasets as tfds

    if Path(name).is_dir():
        builder = tfds.builder_from_directory(os.fspath(name))
    else:
        try:
            builder = tfds.builder(os.fspath(name), data_dir=data_dir)
        except tfds.core.DatasetNotFoundError:  # its message lists hundreds of names
            near = difflib.get_close_matches(os.fspath(name), ["noto_emoji", *tfds.list_builders()])
            raise DataError(
                f"name={os.fspath(name)!r}: neither a folder nor a TFDS data set"
                + (f"; near it: {', '.join(near)}" if near else "")
            ) from None
        except ValueError as error:
            raise DataError(f"name={os.fspath(name)!r}: {error}") from error
    return TfdsSource(builder, split, image_key, caption_key)


class TfdsSource:
    """A split of a TFDS builder as a source.

    Examples hold "image" uint8 [H, W, 3], "caption" str, "example_id" (the feature of that name,
    or the place in the split), "group" (the feature of that name, or the id as a string) and all
    other features that are strings, numbers or sequences of them.
    """

    def __init__(self, builder: Any, split: str, image_key: str, caption_key: str):
        import tensorflow_datasets as tfds

        self.name = f"{builder.info.full_name}[{split}]"
        if not builder.is_prepared():
            raise DataError(
                f"{self.name}: not prepared in {builder.data_dir}; run "
                f"`tfds build {builder.name} --file_format=array_record`"
            )
        features = builder.info.features
        for field, key in (("image_key", image_key), ("caption_key", caption_key)):
            if key.split("/")[0] not in features:
                raise DataError(f"{field}={key!r}: {builder.name} has {', '.join(features)}")
        self._image_key, self._caption_key = image_key, caption_key
        self._labels = getattr(dict(features.items()).get(caption_key), "int2str", None)
        # Images are left as bytes: all sources decode with the same code.
        skip = {image_key: tfds.decode.SkipDecoding()} if image_key in features else None
        try:
            self._records = builder.as_data_source(split=split, decoders=skip)
        except NotImplementedError as error:
            raise DataError(
                f"{self.name}: prepared as {builder.info.file_format.value}, which has no random "
                "access; prepare with file_format=array_record"
            ) from error
        except ValueError as error:
            known = ", ".join(builder.info.splits)
            raise DataError(
                f"split={split!r}: nothing there; {builder.name} has {known}: {error}"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        example = self.undecoded(index)
        image = example["image"]
        return {
            **example,
            "image": decode_rgb(image) if isinstance(image, bytes) else array_to_rgb(image),
        }

    def undecoded(self, index: int) -> Example:
        """The example with the bytes of its file; images that are stored as arrays stay such."""
        record = self._records[index]
        captions = _lookup(record, self._caption_key)
        if self._labels is not None:
            captions = self._labels(captions)
        image = _lookup(record, self._image_key)
        example = {
            key: _plain(value)
            for key, value in record.items()
            if key != self._image_key and not isinstance(value, Mapping)
        }
        example.setdefault("example_id", index)
        example.setdefault("group", str(example["example_id"]))
        captions = _plain(captions)
        if isinstance(captions, list):
            example["captions"] = captions
            captions = captions[0] if captions else ""
        example["caption"] = captions
        example["image"] = image if isinstance(image, bytes) else array_to_rgb(image)
        return example


def _lookup(record: Any, key: str) -> Any:
    """Feature "a/b" of a record; through a sequence of records, the sequence of their features."""
    for part in key.split("/"):
        record = [r[part] for r in record] if isinstance(record, list) else record[part]
    return record


def _plain(value: Any) -> Any:
    """Bytes to str, 0-d arrays to scalars, string arrays to lists; the rest as it is."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, np.ndarray) and (value.dtype == object or value.dtype.kind in "SU"):
        value = value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(v) for v in value] if isinstance(value, list) else value
