"""Webdataset tars, as img2dataset writes them: KEY.jpg, KEY.txt and KEY.json side by side.

The files of one image follow each other (`tar --sort=name` sees to that). Nothing is ever
extracted: names of members are only names. A tar is read front to back, one image in memory.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ldm_scaling.data.captioned_images.entries import (
    IMAGE_EXTENSIONS,
    MAX_TEXT_BYTES,
    BadMetadataError,
    Entry,
    Item,
    Problem,
    captions_of,
    is_unsafe,
    read_metadata,
    readable,
    score_of,
)

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_MAX_HEADER = 2**20  # long names and PAX records; more is damage, or an attempt to fill the memory


@dataclass(frozen=True)
class _Part:
    """One file of an image. `data` is None where it was not read: `why` says why."""

    key: str
    extension: str
    data: bytes | None
    why: Problem | None = None
    torn: bool = False


class _DamagedError(Exception):
    """The tar cannot be read on."""


_DAMAGE = (_DamagedError, OSError, EOFError, zlib.error)  # the others are what gzip raises


@dataclass(frozen=True)
class TarShard:
    """One tar, plain or gzipped.

    Attributes:
      path: of the tar.
      max_bytes: larger images are not read.
      caption_field, score_field: of KEY.json; "" looks where they usually are.
    """

    path: Path
    max_bytes: int
    caption_field: str = ""
    score_field: str = ""

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    def keys(self) -> Iterator[str]:
        """From the headers alone."""
        last = None
        for part in self._parts(read=False):
            if isinstance(part, _Part) and part.key != last:
                last = part.key
                yield last

    def entries(self) -> Iterator[Item]:
        """In the order of the tar."""
        parts: list[_Part] = []
        for part in self._parts(read=True):
            if isinstance(part, Problem):
                if part.reason == "damaged shard" and parts:
                    yield self._assemble(parts)
                    parts = []
                yield part
                continue
            if parts and parts[0].key != part.key:
                yield self._assemble(parts)
                parts = []
            parts.append(part)
        if parts:
            yield self._assemble(parts)

    def _parts(self, read: bool) -> Iterator[_Part | Problem]:
        count = 0
        try:
            with _open(self.path) as file:
                for member in _members(file):
                    count += 1
                    found = self._part(member, file, read)
                    if found is not None:
                        yield found
                    if isinstance(found, _Part) and found.torn:
                        raise _DamagedError(f"{member.name} is cut off")
        except _DAMAGE as error:
            detail = f"after {count} members: {error}"
            yield Problem("damaged shard", self.name, detail, numbered=False)

    def _part(self, member: tarfile.TarInfo, file: IO[bytes], read: bool) -> _Part | Problem | None:
        name = readable(member.name)
        if member.isdir():
            return None
        if is_unsafe(name):
            return Problem("unsafe name", name, numbered=False)
        if not member.isreg() or member.issparse():
            return Problem("not a file", name, numbered=False)
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, extension = (f"{folder}/{stem}" if folder else stem), extension.lower()
        is_image = extension in IMAGE_EXTENSIONS
        if not read or not (is_image or extension in ("txt", "json")):
            return _Part(key, extension, None)
        limit = self.max_bytes if is_image else MAX_TEXT_BYTES
        if member.size > limit:
            detail = f"{name} has {member.size} bytes, of {limit} allowed"
            return _Part(key, extension, None, Problem("too many bytes", key, detail))
        try:
            file.seek(member.offset_data)
            data = file.read(member.size)
        except _DAMAGE:
            data = b""
        if len(data) < member.size:
            why = Problem("broken image", key, f"{name} is cut off")
            return _Part(key, extension, None, why, torn=True)
        return _Part(key, extension, data)

    def _assemble(self, parts: list[_Part]) -> Item:
        key = parts[0].key
        found = {part.extension: part for part in reversed(parts)}  # the first of equals
        why = next((part.why for part in parts if part.why), None)
        if why is not None:
            return why
        try:
            record = read_metadata(found["json"].data or b"") if "json" in found else {}
            captions = captions_of(record, self.caption_field)
            if "txt" in found and not self.caption_field:
                text = (found["txt"].data or b"").decode("utf-8", "replace").strip()
                captions = (text,) if text else captions
            score, group = score_of(record, self.score_field), record.get("group")
        except BadMetadataError as error:
            return Problem("bad metadata", key, str(error))
        image = next((found[e].data for e in IMAGE_EXTENSIONS if e in found), None)
        if image is None:
            return Problem("no image", key, f"only {', '.join(sorted(found))}")
        if not captions:
            return Problem("no caption", key)
        return Entry(key, image, captions, score, group if isinstance(group, str) else "")


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix in (".gz", ".tgz") else path.open("rb")  # type: ignore[return-value]


class _Bounded:
    """A file of which tarfile can read only headers: a member's size may be any number."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """At most `_MAX_HEADER` bytes."""
        if size > _MAX_HEADER:
            raise _DamagedError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Every member's header. Unlike tarfile's own loop it keeps none of them, and tells damage from
    the end of the archive.

    Raises:
      _DamagedError: no tar, or not whole.
    """
    try:
        archive = tarfile.TarFile(fileobj=_Bounded(file))  # type: ignore[arg-type]
    except (tarfile.TarError, ValueError) as error:
        raise _DamagedError(str(error)) from None
    offset = 0
    while True:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        if block == tarfile.NUL * tarfile.BLOCKSIZE:
            return
        if len(block) < tarfile.BLOCKSIZE:
            raise _DamagedError("ends without the closing block: truncated")
        file.seek(offset)
        try:
            member = tarfile.TarInfo.fromtarfile(archive)
        except (tarfile.TarError, ValueError) as error:
            raise _DamagedError(str(error)) from None
        offset = archive.offset  # of the next header: `fromtarfile` sets it
        yield member
