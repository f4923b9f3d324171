"""What every kind of source says of its images, before anybody has looked at them."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeAlias, runtime_checkable

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "avif", "bmp", "gif", "tif", "tiff", "jp2")
CAPTION_FIELDS = ("caption", "captions", "text", "TEXT")
SCORE_FIELDS = ("aesthetic_score", "aesthetic", "AESTHETIC_SCORE", "aesthetic_score_laion_v2")

MAX_TEXT_BYTES = 2**20
"""Captions and metadata of one image; more is no caption."""

BAD = {
    "damaged shard": "the shard cannot be read on from here; what came before is kept",
    "unsafe name": "absolute, or leads out of the folder",
    "not a file": "a link, a device or a sparse file",
    "duplicate key": "the first image of that key is kept",
    "no image": "a caption without an image, or a file that is not there",
    "no caption": "an image without a caption",
    "bad metadata": "not what it should be",
    "too many bytes": "larger than max_bytes",
    "too many pixels": "larger than max_pixels, perhaps a decompression bomb",
    "broken image": "does not decode",
}
"""Reasons that say something is wrong with the data, and what each means."""

FILTERED = {
    "not downloaded": "the download had failed",
    "small": "short side below min_side",
    "long": "aspect ratio above max_aspect",
    "caption length": "no caption within min_caption .. max_caption characters",
    "low score": "aesthetic score below min_score",
}
"""Reasons that say the data is whole, but not wanted."""


@dataclass(frozen=True)
class Entry:
    """An image as its source has it.

    Attributes:
      key: its name in the source, unique.
      image: the file, as bytes.
      captions: at least one.
      score: aesthetic score, None where the source has none.
      group: what training and test must not share; "" for the hash of the file.
      split: "train" or "test" where the source decides; "" elsewhere.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    score: float | None = None
    group: str = ""
    split: str = ""


@dataclass(frozen=True)
class Problem:
    """Something that is not kept.

    Attributes:
      reason: of `BAD` or `FILTERED`.
      key: what it is about: a key, the name of a member or of a shard.
      detail: in words, "" where the reason says it all.
      numbered: whether it stands in the place of an entry, so that `keys` has it, too.
    """

    reason: str
    key: str
    detail: str = ""
    numbered: bool = True

    def __post_init__(self):
        if self.reason not in BAD and self.reason not in FILTERED:
            raise ValueError(f"reason={self.reason!r}: not in BAD and not in FILTERED")


Item: TypeAlias = Entry | Problem


@runtime_checkable
class Shard(Protocol):
    """A part of a source that one worker reads. Travels to other processes; holds no open file."""

    @property
    def name(self) -> str:
        """For people: a file, and which part of it."""

    def keys(self) -> Iterator[str]:
        """The key of every entry in order, without reading images."""

    def entries(self) -> Iterator[Item]:
        """Entries, and in the place of those that cannot be used, problems.

        Exactly one item for each of `keys`, in that order; problems that are not `numbered` (of
        members that are no entry, of the shard itself) come between them.
        """


class BadMetadataError(ValueError):
    """A field of the metadata is not what it should be."""


def read_metadata(text: bytes) -> dict[str, Any]:
    """A JSON object. Raises BadMetadataError."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadMetadataError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadMetadataError("not a JSON object")
    return record


def captions_of(record: Mapping[str, Any], field: str = "") -> tuple[str, ...]:
    """Captions in a record, one or a list of them, stripped; empty ones do not count.

    Args:
      field: where they are; "" looks in `CAPTION_FIELDS`.

    Raises:
      BadMetadataError: neither a string nor a list of strings.
    """
    for name in (field,) if field else CAPTION_FIELDS:
        found = record.get(name)
        if found is None:
            continue
        captions = [found] if isinstance(found, str) else found
        if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            raise BadMetadataError(f"{name}={str(found)[:60]!r}: neither a string nor a list of it")
        return tuple(c.strip() for c in captions if c.strip())
    return ()


def score_of(record: Mapping[str, Any], field: str = "") -> float | None:
    """The aesthetic score in a record, None where it has none.

    Raises:
      BadMetadataError: not a number.
    """
    for name in (field,) if field else SCORE_FIELDS:
        found = record.get(name)
        if found is None:
            continue
        try:
            score = float(found)
        except (TypeError, ValueError):
            raise BadMetadataError(f"{name}={str(found)[:60]!r}: not a number") from None
        return None if math.isnan(score) else score
    return None


def is_unsafe(name: str) -> bool:
    """Whether a name of a file is absolute or leads out of the folder it is relative to."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = len(name) > 1 and name[1] == ":"
    return not name or "\0" in name or path.is_absolute() or drive or ".." in path.parts


def readable(text: str) -> str:
    """Valid UTF-8: names of files may hold bytes that are none."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
