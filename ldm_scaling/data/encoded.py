"""Latents and text embeddings computed ahead, as files with random access.

An encoded set is a folder: `encoding.json` says what it holds and what made it, and each file
`encoded.array_record-I-of-N` holds the same number of examples (the last one the rest). An example
is a record in safetensors' format. A file has its name only when it is whole.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_scaling.data.source import DataError, Example

MANIFEST = "encoding.json"


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What an encoded set is.

    Attributes:
      identity: everything that decides the values (JSON scalars): encoders, tokens, pixels.
      examples: how many, in all files.
      shard_examples: how many in each file but the last.
      dtype: of the stored arrays, "float16" or "float32".
      rounding: column -> root mean square of what `dtype` changes, relative to that of the column.
    """

    identity: Mapping[str, Any]
    examples: int
    shard_examples: int
    dtype: str
    rounding: Mapping[str, float]

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.examples // self.shard_examples)

    def range(self, shard: int) -> tuple[int, int]:
        """First example of a file, and the one after its last."""
        start = shard * self.shard_examples
        return start, min(start + self.shard_examples, self.examples)

    def path(self, folder: Path, shard: int) -> Path:
        """The file of a shard."""
        return folder / f"encoded.array_record-{shard:05d}-of-{self.shards:05d}"

    def missing(self, folder: Path) -> list[int]:
        """Shards that are not there."""
        return [i for i in range(self.shards) if not self.path(folder, i).is_file()]

    def save(self, folder: Path) -> None:
        """Writes the manifest, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"
        partial = folder / f".{MANIFEST}.{os.getpid()}.partial"
        partial.write_text(text, "utf-8")
        os.replace(partial, folder / MANIFEST)

    @classmethod
    def load(cls, folder: Path) -> "Encoding | None":
        """The manifest of a folder, None where there is none.

        Raises:
          DataError: there is one that cannot be read.
        """
        try:
            return cls(**json.loads((folder / MANIFEST).read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DataError(f"{folder / MANIFEST}: not readable: {error}") from None


class EncodedSource:
    """An encoded set as a source.

    Examples hold the stored arrays in the type they are stored in, "caption" str and "example_id"
    int.

    Args:
      folder: of the set.

    Raises:
      DataError: no encoded set, or one that is not complete.
    """

    def __init__(self, folder: Path):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        encoding = Encoding.load(folder)
        if encoding is None:
            raise DataError(f"{folder}: no encoded set ({MANIFEST} is missing)")
        missing = encoding.missing(folder)
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} of {encoding.shards} files are missing, the first is "
                f"{encoding.path(folder, missing[0]).name}; launch/precompute.py goes on where it "
                "was"
            )
        self.encoding = encoding
        ranges = [encoding.range(shard) for shard in range(encoding.shards)]
        # With the number of examples beside the name, no file is opened before it is read.
        self._records = ArrayRecordDataSource(
            [f"{encoding.path(folder, i)}[0:{b - a}]" for i, (a, b) in enumerate(ranges)]
        )
        self._folder = folder

    def __len__(self) -> int:
        return self.encoding.examples

    def __getitem__(self, index: int) -> Example:
        return self._read([index])[0]

    def take(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`: name -> array [len(indices), ...]."""
        examples = self._read([int(index) for index in indices])
        columns = {name: [example[name] for example in examples] for name in examples[0]}
        captions = np.array(columns.pop("caption"), dtype=object)
        ids = np.array(columns.pop("example_id"), np.int32)
        stacked = {name: np.stack(values) for name, values in columns.items()}
        return {**stacked, "caption": captions, "example_id": ids}

    def _read(self, indices: list[int]) -> list[Example]:
        try:
            return [unpack(record) for record in self._records.__getitems__(indices)]
        except Exception as error:  # the reader, and safetensors, raise their own kinds
            where = self.encoding.path(self._folder, indices[0] // self.encoding.shard_examples)
            raise DataError(
                f"{self._folder}: cannot be read near {where.name}: {error}; delete the damaged "
                "file, and launch/precompute.py makes it again"
            ) from error


def write_shard(path: Path, examples: Iterable[Example], dtype: str) -> None:
    """Writes one file of an encoded set; it appears whole or not at all.

    Args:
      examples: "caption", "example_id" and floating-point arrays, which are stored as `dtype`.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # One example a chunk is what makes random access fast.
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    try:
        for example in examples:
            writer.write(pack(example, dtype))
        writer.close()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    for left in path.parent.glob(f".{path.name}.*.partial"):  # of runs that were killed
        left.unlink(missing_ok=True)


def pack(example: Example, dtype: str) -> bytes:
    """One record."""
    from safetensors.numpy import save

    arrays = dict(example)
    caption = np.frombuffer(arrays.pop("caption").encode(), np.uint8)
    ids = np.asarray(arrays.pop("example_id"), np.int32)
    stored = {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}
    return save({**stored, "caption": caption, "example_id": ids})


def unpack(record: bytes) -> Example:
    """What `pack` packed."""
    from safetensors.numpy import load

    arrays = load(record)
    caption = arrays.pop("caption").tobytes().decode()
    return {**arrays, "caption": caption, "example_id": int(arrays.pop("example_id"))}
