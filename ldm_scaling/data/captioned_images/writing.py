"""One shard of a source becomes array_record files and a report, whole or not at all."""

import contextlib
import hashlib
import io
import json
import os
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ldm_scaling.data.captioned_images.entries import Entry, Problem, Shard
from ldm_scaling.data.captioned_images.report import Report
from ldm_scaling.data.captioned_images.rules import Rules
from ldm_scaling.data.splitting import in_test


def features() -> Any:
    """The TFDS features of a prepared set."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),  # a file's bytes, in any format
            "caption": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),  # "caption" is the first
            "example_id": tfds.features.Scalar(dtype=np.int32),  # place in the source
            "group": tfds.features.Text(),
            "key": tfds.features.Text(),
        }
    )


def shard_file(folder: Path, split: str, index: int) -> Path:
    """Where `write_shard` leaves the examples of a split."""
    return folder / f"{split}-{index:06d}.array_record"


def report_file(folder: Path, index: int) -> Path:
    """Where `write_shard` leaves the report; it is there when all else is."""
    return folder / f"shard-{index:06d}.json"


def read_report(folder: Path, index: int) -> Report | None:
    """The report of a shard that is written whole; None for any other."""
    try:
        report = Report.from_dict(json.loads(report_file(folder, index).read_bytes()))
    except (FileNotFoundError, ValueError, KeyError):
        return None
    for split, size in report.num_bytes.items():
        path = shard_file(folder, split, index)
        if not path.is_file() or path.stat().st_size != size:
            return None
    return report


def write_shard(
    shard: Shard, index: int, first_id: int, duplicates: Collection[int], rules: Rules, folder: Path
) -> None:
    """Writes what `rules` keep of a shard; does nothing where an earlier run has done it.

    Args:
      index: number of the shard, for the names of files.
      first_id: example_id of its first entry. An entry keeps its id whatever becomes of others.
      duplicates: places of entries whose key an earlier entry has.
      folder: for the files.
    """
    if read_report(folder, index) is not None:
        return
    report = Report(shards=1)
    with _Files(folder, index) as files:
        place = -1
        for item in shard.entries():
            report.entries += 1
            if isinstance(item, Entry) or item.numbered:
                place += 1
                if place in duplicates:
                    key = item.key
                    item = Problem("duplicate key", key)
            kept = rules.apply(item) if isinstance(item, Entry) else item
            if isinstance(kept, Problem):
                report.drop(shard.name, kept)
                continue
            split = files.write(kept, first_id + place, rules.test_share)
            report.kept[split] += 1
            if rules.min_score is not None and kept.score is None:
                report.without_score += 1
        report.num_bytes.update(files.finish())
    partial = _partial(report_file(folder, index))
    partial.write_text(report.to_json(), "utf-8")
    os.replace(partial, report_file(folder, index))


class _Files:
    """The array_record files of a shard, one a split; they get their names when all are whole."""

    def __init__(self, folder: Path, index: int):
        import tensorflow_datasets as tfds

        self._folder, self._index = folder, index
        self._features = features()
        self._serializer = tfds.core.ExampleSerializer(self._features.get_serialized_info())
        self._writers: dict[str, tuple[Path, Any]] = {}

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *exception: object) -> None:
        for partial, writer in self._writers.values():
            with contextlib.suppress(Exception):
                writer.close()
            partial.unlink(missing_ok=True)

    def write(self, entry: Entry, example_id: int, test_share: float) -> str:
        """Writes an example and says into which split."""
        group = entry.group or hashlib.sha256(entry.image).hexdigest()[:16]
        split = entry.split or ("test" if in_test(group, test_share) else "train")
        example = {
            "image": io.BytesIO(entry.image),  # a file object is stored byte for byte
            "caption": entry.captions[0],
            "captions": list(entry.captions),
            "example_id": example_id,
            "group": group,
            "key": entry.key,
        }
        message = self._serializer.get_tf_example(self._features.encode_example(example))
        # The order of features in a message is otherwise another in every process.
        self._writer(split).write(message.SerializeToString(deterministic=True))
        return split

    def _writer(self, split: str) -> Any:
        from array_record.python.array_record_module import ArrayRecordWriter

        if split not in self._writers:
            partial = _partial(shard_file(self._folder, split, self._index))
            # One example a chunk, as TFDS writes for random access.
            self._writers[split] = (partial, ArrayRecordWriter(str(partial), "group_size:1"))
        return self._writers[split][1]

    def finish(self) -> dict[str, int]:
        """Closes and names the files: split -> bytes."""
        sizes = {}
        for split, (partial, writer) in self._writers.items():
            writer.close()
            sizes[split] = partial.stat().st_size
            os.replace(partial, shard_file(self._folder, split, self._index))
        self._writers = {}
        return sizes


def _partial(path: Path) -> Path:
    """A name that no other attempt at the same shard uses: runners may start two."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
