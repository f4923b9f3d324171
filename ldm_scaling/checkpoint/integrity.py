"""Is a folder still what was written? A manifest of file sizes and checksums answers.

Orbax makes a save atomic, but it cannot see what happens to the files later (a truncated copy, a
disk that lost its last writes): tensorstore may then fail in many ways, or read zeros. The manifest
is part of the save itself, so a folder that has no manifest was never whole.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from etils import epath

MANIFEST = "integrity.json"
# Orbax writes these two after the manifest, while it commits.
_WRITTEN_AT_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK = 1 << 24
_READERS = 8


def write_manifest(folder: epath.Path) -> None:
    """Writes `integrity.json`: size in bytes and CRC-32 of every file below `folder`.

    Object stores (`gs://`) check their own objects; there only sizes are taken, which costs no
    second reading of the data.
    """
    entries: dict[str, dict[str, int]] = {}
    paths = dict(_files(folder))
    for name, path in paths.items():
        entries[name] = {"bytes": path.stat().length}
    if not _is_object_store(folder):
        for name, checksum in _crc32s(paths):
            entries[name]["crc32"] = checksum
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps({"files": entries}, indent=1, sort_keys=True))
    temporary.replace(folder / MANIFEST)


def find_damage(folder: epath.Path) -> str | None:
    """None where every file of the manifest is there, whole; else what is wrong, in words."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    for name in _WRITTEN_AT_COMMIT:
        if not (folder / name).exists() or not (folder / name).stat().length:
            return f"{name} is missing or empty"
    try:
        json.loads((folder / _WRITTEN_AT_COMMIT[0]).read_text())
    except ValueError:
        return f"{_WRITTEN_AT_COMMIT[0]} is not readable"
    for name, entry in files.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        size = path.stat().length
        if size != entry["bytes"]:
            return f"{name} has {size} bytes of {entry['bytes']}"
    if not _is_object_store(folder):
        known = {name: entry["crc32"] for name, entry in files.items() if "crc32" in entry}
        for name, checksum in _crc32s({name: folder / name for name in known}):
            if checksum != known[name]:
                return f"{name} differs from what was written (CRC-32)"
    return None


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        name = prefix + path.name
        if path.is_dir():
            yield from _files(path, name + "/")
        elif name not in _WRITTEN_AT_COMMIT and not name.startswith(MANIFEST):
            yield name, path


def _crc32s(paths: Mapping[str, epath.Path]) -> Iterator[tuple[str, int]]:
    """Name and checksum of each file; several at a time, as one reader does not fill a network."""
    with ThreadPoolExecutor(_READERS) as pool:
        yield from zip(paths, pool.map(_crc32, paths.values()), strict=True)


def _crc32(path: epath.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _is_object_store(folder: epath.Path) -> bool:
    return "://" in os.fspath(folder)
