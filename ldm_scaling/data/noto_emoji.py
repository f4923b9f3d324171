"""The Noto emoji set as a TFDS builder: 3,786 captioned 64 px images, split by base emoji.

Only preparing the set needs this module; reading the packaged copy needs its files alone
(`tfds_source.packaged`).
"""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ldm_scaling.data.splitting import in_test

TEST_SHARE = 0.1

_DESCRIPTION = """\
Google Noto emoji artwork (64x64 RGB, alpha flattened on white) with one English caption each.

`train` and `test` share no `group` (a base emoji with all its skin tones) and no picture: groups
whose artwork is pixel for pixel the same (the flags of France and Saint Martin) move together.
"""

_CITATION = """\
@misc{noto-emoji,
  title = {Noto Emoji},
  author = {{Google}},
  howpublished = {https://github.com/googlefonts/noto-emoji, Apache License 2.0},
}
"""


class NotoEmoji(tfds.core.GeneratorBasedBuilder):
    """Builds from a folder with `captions.jsonl` and `images/` (`manual_dir`)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "emoji-datasource-google 16.0.0, emojibase-data 17.0.0."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "A folder with captions.jsonl and the folder images beside it."

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="png"),
                "caption": tfds.features.Text(),
                "tags": tfds.features.Sequence(tfds.features.Text()),
                "category": tfds.features.Text(),
                "subcategory": tfds.features.Text(),
                "group": tfds.features.Text(),
                "variant": tfds.features.Text(),  # skin tone as hex code points, "" for the base
                "example_id": tfds.features.Scalar(dtype=np.int32),  # line of captions.jsonl
            }
        )
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            features=features,
            homepage="https://github.com/googlefonts/noto-emoji",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager):
        root = Path(dl_manager.manual_dir)
        lines = (root / "captions.jsonl").read_text(encoding="utf-8").splitlines()
        records = [{**json.loads(line), "example_id": i} for i, line in enumerate(lines)]
        pictures = {r["file"]: (root / "images" / r["file"]).read_bytes() for r in records}
        keys = split_keys((r["group"], _pixels(pictures[r["file"]])) for r in records)
        chosen: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
        for record in records:
            chosen["test" if in_test(keys[record["group"]], TEST_SHARE) else "train"].append(record)
        return {split: self._generate_examples(part, pictures) for split, part in chosen.items()}

    def _generate_examples(
        self, records: list[dict[str, Any]], pictures: Mapping[str, bytes]
    ) -> Iterator[tuple[str, dict[str, Any]]]:

        names = ("caption", "tags", "category", "subcategory", "group", "example_id")
        for record in records:
            example = {name: record[name] for name in names}
            # A file object is stored byte for byte; an array would be encoded again.
            example["image"] = io.BytesIO(pictures[record["file"]])
            example["variant"] = record["variant"] or ""
            yield record["file"], example


def split_keys(pairs: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Maps each group to the key it is split by, one key for all groups that share a picture.

    Args:
      pairs: (group, pixels) of every example.

    Returns:
      group -> the first group, in alphabetical order, of those linked by equal pictures.
    """
    groups_of = defaultdict(set)
    for group, pixels in pairs:
        groups_of[pixels].add(group)
    root: dict[str, str] = {}

    def find(group: str) -> str:
        while root.setdefault(group, group) != group:
            group = root[group]
        return group

    for linked in groups_of.values():
        roots = sorted(find(group) for group in linked)
        for other in roots:
            root[other] = roots[0]
    return {group: find(group) for group in root}


def _pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).digest()
