"""A folder of images with a file of captions, checked before it is used."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8

from ldm_scaling.data.images import MAX_PIXELS, UnreadableImageError, decode_rgb
from ldm_scaling.data.source import DataError, Example

METADATA_FILES = ("metadata.jsonl", "captions.jsonl")
_NAMED = 20  # more than that many bad entries are counted, not named, in the log


@dataclass(frozen=True)
class _Entry:
    """One good line of the metadata file."""

    file: str
    caption: str
    group: str
    example_id: int


class FolderSource:
    """Images and their captions from a folder.

    `metadata.jsonl` (or `captions.jsonl`) has one object a line: "file_name" or "file" (beside it
    or in `images/`), "caption" or "text", and optionally "group" (its default is the file) and
    "example_id" (its default is the number of the line, from 0: lines may be appended without
    moving any id). Splits are subfolders with their own metadata file; a folder without them is
    "train", and also "all".

    The order of training must not depend on which images turn out to be broken, so every image
    is decoded once when the source is opened. Those that do not decode are named in the log,
    left out, and listed in `skipped`. With `scan_cache`, results are written there as they come:
    an interrupted scan goes on, and a later one reads only files whose size or date has changed.

    Examples hold "image" uint8 [H, W, 3] (`images.decode_rgb` says how other modes become RGB),
    "caption", "example_id", "group" and "file".

    Args:
      folder: path.
      split: see above.
      max_bad_share: this share of the lines may be bad, from 0 (none) to 1.
      max_pixels: larger images are bad: they may be decompression bombs.
      scan_cache: a JSON lines file to remember the scan in; None remembers nothing.
      threads: threads of the scan.

    Raises:
      DataError: no folder, split, metadata file or good line; or too many bad ones.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str = "train",
        *,
        max_bad_share: float = 0.01,
        max_pixels: int = MAX_PIXELS,
        scan_cache: str | os.PathLike | None = None,
        threads: int = 4,
    ):
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share={max_bad_share}: a share lies between 0 and 1")
        self._metadata = _find_metadata(Path(folder), split)
        self._root, self._max_pixels = self._metadata.parent, max_pixels
        self.skipped: list[tuple[str, str]] = []
        entries = list(self._read_entries())
        scan = _Scan(Path(scan_cache) if scan_cache is not None else None, max_pixels)
        paths = [self._path(entry.file) for entry in entries]
        with ThreadPoolExecutor(threads) as pool, scan:
            reasons = list(pool.map(scan.check, paths))
        self.skipped += [
            (entry.file, why) for entry, why in zip(entries, reasons, strict=True) if why
        ]
        self._entries = [e for e, why in zip(entries, reasons, strict=True) if not why]
        self._report(max_bad_share)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        example = self._read(index)
        try:
            image: UInt8[np.ndarray, "H W 3"] = decode_rgb(example["image"], self._max_pixels)
        except UnreadableImageError as error:
            raise DataError(
                f"{self._path(example['file'])}: {error}; it was whole when the folder was opened"
            ) from error
        return {**example, "image": image}

    def undecoded(self, index: int) -> Example:
        """The example with the bytes of its file."""
        # Who decodes elsewhere does so with the usual limit.
        return self._read(index) if self._max_pixels <= MAX_PIXELS else self[index]

    def _read(self, index: int) -> Example:
        entry = self._entries[index]
        try:
            data = self._path(entry.file).read_bytes()
        except OSError as error:
            why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
            raise DataError(
                f"{self._path(entry.file)}: {why}; it was whole when the folder was opened"
            ) from error
        return {
            "image": data,
            "caption": entry.caption,
            "example_id": entry.example_id,
            "group": entry.group,
            "file": entry.file,
        }

    def _path(self, file: str) -> Path:
        beside = self._root / file
        return beside if beside.exists() else self._root / "images" / file

    def _read_entries(self) -> Iterator[_Entry]:
        ids: set[int] = set()
        with self._metadata.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines):
                if not line.strip():
                    continue
                try:
                    entry = _parse(line, number)
                    if entry.example_id in ids:
                        raise ValueError(f"example_id={entry.example_id} is already taken")
                except (ValueError, TypeError) as error:
                    self.skipped.append((f"{self._metadata.name}:{number + 1}", str(error)))
                    continue
                ids.add(entry.example_id)
                yield entry

    def _report(self, max_bad_share: float) -> None:
        total = len(self._entries) + len(self.skipped)
        for name, why in self.skipped[:_NAMED]:
            logging.warning("%s: skipped %s: %s", self._root, name, why)
        if not self._entries and not self.skipped:
            raise DataError(f"{self._metadata}: names no image")
        if self.skipped:
            counted = f"{len(self.skipped)} of {total} entries are bad"
            logging.warning("%s: skipped, %s", self._root, counted)
            if len(self.skipped) > max_bad_share * total or not self._entries:
                named = "; ".join(f"{name}: {why}" for name, why in self.skipped[:3])
                raise DataError(
                    f"{self._root}: {counted}, more than max_bad_share={max_bad_share} allows. "
                    f"The first: {named}"
                )


class _Scan:
    """Decodes files once and remembers, in a file if wanted, which do not."""

    def __init__(self, cache: Path | None, max_pixels: int):
        self._cache, self._max_pixels = cache, max_pixels
        self._known: dict[tuple[str, int, int, int], str] = {}
        self._out: Any = None
        self._torn = False
        if cache is not None and cache.exists():
            text = cache.read_text(encoding="utf-8", errors="replace")
            self._torn = not text.endswith("\n")
            for line in text.splitlines():
                try:
                    *key, why = json.loads(line)
                    self._known[tuple(key)] = why
                except (ValueError, TypeError):
                    continue  # the torn last line of an interrupted scan

    def __enter__(self) -> "_Scan":
        if self._cache is not None:
            # One unbuffered write a line: threads and hosts may append to the same file.
            self._out = self._cache.open("ab", buffering=0)
            if self._torn:
                self._out.write(b"\n")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._out is not None:
            self._out.close()

    def check(self, path: Path) -> str:
        """Why the image cannot be used, "" if it can."""
        try:
            stat = path.stat()
        except OSError:
            return "no such file"
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, self._max_pixels)
        why = self._known.get(key)
        if why is None:
            try:
                decode_rgb(path, self._max_pixels)
                why = ""
            except UnreadableImageError as error:
                why = str(error)
            if self._out is not None:
                self._out.write(json.dumps([*key, why]).encode() + b"\n")
        return why


def _find_metadata(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    places = [folder / split] + ([folder] if split in ("train", "all") else [])
    for place in places:
        for name in METADATA_FILES:
            if (place / name).is_file():
                return place / name
    looked = " or ".join(str(place / name) for place in places for name in METADATA_FILES)
    raise DataError(
        f'{folder}: split={split!r} needs {looked}, one {{"file_name": ..., "caption": ...}} a line'
    )


def _parse(line: str, number: int) -> _Entry:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    file = record.get("file_name", record.get("file"))
    caption = record.get("caption", record.get("text"))
    if not isinstance(file, str) or not file:
        raise ValueError('needs "file_name" or "file", a string')
    if not isinstance(caption, str):
        raise ValueError('needs "caption" or "text", a string')
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise ValueError(f"{file!r} lies outside the folder")
    example_id = record.get("example_id", number)
    if type(example_id) is not int or not 0 <= example_id < 2**31:
        raise ValueError(f"example_id={example_id!r}: must be an int from 0 to 2**31 - 1")
    return _Entry(file, caption, str(record.get("group", file)), example_id)
