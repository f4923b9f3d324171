"""COCO folders: annotations/captions_NAME.json, and the images in NAME/ or images/NAME/.

The annotations are read whole once, when shards are made (90 MB for COCO 2017); shards carry
their part of them. Files named after "train", "val" or "test" decide the split themselves.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_scaling.data.captioned_images.entries import Entry, Item, Problem, is_unsafe
from ldm_scaling.data.captioned_images.files import read_image
from ldm_scaling.data.source import DataError

PATTERN = "annotations/captions_*.json"
IMAGES = 5_000
"""Images of a shard."""


@dataclass(frozen=True)
class CocoShard:
    """Some images of one annotation file, with their captions.

    Attributes:
      name: annotation file and the places of the images in it.
      folders: where images may lie.
      images: (file name, captions) of each.
      split: see the module.
      max_bytes: larger images are not read.
    """

    name: str
    folders: tuple[Path, ...]
    images: tuple[tuple[str, tuple[str, ...]], ...]
    split: str
    max_bytes: int

    def keys(self) -> Iterator[str]:
        """Names of the files."""
        return (file for file, _ in self.images)

    def entries(self) -> Iterator[Item]:
        """In the order of the annotations."""
        return (self._entry(*image) for image in self.images)

    def _entry(self, file: str, captions: tuple[str, ...]) -> Item:
        if is_unsafe(file):
            return Problem("unsafe name", file)
        if not captions:
            return Problem("no caption", file)
        found = read_image(file, (folder / file for folder in self.folders), self.max_bytes)
        if isinstance(found, Problem):
            return found
        return Entry(file, found, captions, split=self.split)


def coco_shards(path: Path, max_bytes: int) -> list[CocoShard]:
    """The shards of one annotation file.

    Raises:
      DataError: not such a file.
    """
    try:
        content = json.loads(path.read_bytes())
        captions: dict[Any, list[str]] = defaultdict(list)
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(str(annotation["caption"]).strip())
        images = [
            (str(image["file_name"]), tuple(c for c in captions[image["id"]] if c))
            for image in content["images"]
        ]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(
            f'{path}: not COCO captions ({type(error).__name__}: {error}); needs "images" with id '
            'and file_name, and "annotations" with image_id and caption'
        ) from None
    part = path.stem.removeprefix("captions_")
    root = path.parent.parent
    folders = (root / part, root / "images" / part, root / "images", root)
    split = next((s for n, s in _SPLITS.items() if part.startswith(n)), "")
    return [
        CocoShard(
            f"{path.name}[{start}-{min(start + IMAGES, len(images))}]",
            folders,
            tuple(images[start : start + IMAGES]),
            split,
            max_bytes,
        )
        for start in range(0, len(images), IMAGES)
    ]


_SPLITS = {"train": "train", "val": "test", "test": "test"}
