"""Captions to draw, from the files in which people and benchmarks give them."""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_scaling.naming import check_name

CHOICES = ("all", "first", "mlperf")


@dataclasses.dataclass(frozen=True)
class Caption:
    """What one image is to show.

    Attributes:
      id: decides the noise of the image and the name of its file.
      text: the caption.
      reference: file name of the real image it describes, "" where there is none.
    """

    id: int
    text: str
    reference: str = ""


def read_captions(
    path: Path, *, choice: str = "all", count: int | None = None, seed: int = 2023
) -> list[Caption]:
    """Reads captions, and chooses among them.

    Args:
      path: COCO annotations (`captions_val2014.json`); `.jsonl`, `.tsv` or `.csv` with a "caption",
        and where they have them an "id" and a "reference" (the file of the real image; in a table
        also "file_name"); or any other text file, one caption a line. Without ids the captions
        are numbered from 0.
      choice: "all"; "first", one caption an image, as they come; or "mlperf": shuffled, one caption
        an image, in the order of their ids, as MLPerf's training benchmark chooses 30,000 of COCO
        (mlcommons/training, stable_diffusion/scripts/datasets).
      count: at most so many; None for all there are.
      seed: of "mlperf", whose published choice has 2023.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not one of these formats, an empty or repeated entry (named by its place), fewer
        captions than `count`.
    """
    check_name("choice", choice, CHOICES)
    if not path.is_file():
        raise FileNotFoundError(f"captions={path}: no such file")
    found = list(_READERS.get(path.suffix, _lines)(path))
    _check(path, found)
    if choice == "mlperf":
        # What pandas does for `sample(frac=1, random_state=seed)`.
        found = [found[i] for i in np.random.RandomState(seed).permutation(len(found))]
    if choice != "all":
        first: dict[Any, Caption] = {}
        for caption in found:
            first.setdefault(caption.reference or caption.id, caption)
        found = list(first.values())
    if count is not None and len(found) < count:
        raise ValueError(f"{path}: has {len(found)} captions to choose, not count={count}")
    found = found[:count]
    return sorted(found, key=lambda caption: caption.id) if choice == "mlperf" else found


def captions_hash(captions: Sequence[Caption]) -> str:
    """Sixteen hex digits of ids and texts, in their order."""
    lines = "\n".join(f"{caption.id} {caption.text}" for caption in captions)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _check(path: Path, captions: Sequence[Caption]) -> None:
    if not captions:
        raise ValueError(f"{path}: holds no caption")
    seen: set[int] = set()
    for place, caption in enumerate(captions, 1):
        if not caption.text:
            raise ValueError(f"{path}: caption {place} is empty")
        if caption.id in seen:
            raise ValueError(f"{path}: caption {place} has id {caption.id}, as one before it")
        if not 0 <= caption.id < 2**31:
            raise ValueError(f"{path}: caption {place} has id {caption.id}: not in 0..2^31-1")
        seen.add(caption.id)


def _coco(path: Path) -> Iterator[Caption]:
    try:
        content = json.loads(path.read_bytes())
        files = {image["id"]: str(image["file_name"]) for image in content.get("images", ())}
        for entry in content["annotations"]:
            # Some of COCO's captions end in line breaks.
            text = str(entry["caption"]).replace("\n", "").strip()
            reference = files.get(entry["image_id"], str(entry["image_id"]))
            yield Caption(int(entry["id"]), text, reference)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}: not COCO captions ({type(error).__name__}: {error}); needs "annotations" '
            "with id, image_id and caption"
        ) from None


def _jsonl(path: Path) -> Iterator[Caption]:
    with path.open(encoding="utf-8") as file:
        for place, line in enumerate(file):
            try:
                yield _entry(path, place, json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {place + 1} is not JSON ({error})") from None


def _table(path: Path) -> Iterator[Caption]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8", newline="") as file:
        for place, row in enumerate(csv.DictReader(file, delimiter=delimiter)):
            # MLPerf's table of captions calls the real image so.
            yield _entry(path, place, {"reference": row.get("file_name"), **row})


def _entry(path: Path, place: int, fields: Any) -> Caption:
    if not isinstance(fields, Mapping) or not isinstance(fields.get("caption"), str):
        raise ValueError(f"{path}: entry {place + 1} has no caption")
    try:
        number = int(fields.get("id", place))
    except (TypeError, ValueError):
        raise ValueError(
            f"{path}: entry {place + 1} has id {fields['id']!r}, not a whole number"
        ) from None
    return Caption(number, fields["caption"].strip(), str(fields.get("reference") or ""))


def _lines(path: Path) -> Iterator[Caption]:
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        yield Caption(place, line.strip())


_READERS = {".json": _coco, ".jsonl": _jsonl, ".tsv": _table, ".csv": _table}
