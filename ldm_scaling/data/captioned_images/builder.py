"""The TFDS builder: shards in, a prepared data set out, by an Apache Beam pipeline.

TFDS's own Beam writer sorts the bytes of all examples by a hash, and holds a whole file of them in
memory. Here nothing but keys travels between workers: each shard of the source becomes one file a
split, in the source's order. Training shuffles by index, so that order costs nothing, and it does
not depend on how many workers there were.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import tensorflow_datasets as tfds
from absl import logging
from apache_beam.options.pipeline_options import PipelineOptions, TypeOptions

from ldm_scaling.data.captioned_images.entries import Shard
from ldm_scaling.data.captioned_images.report import Report
from ldm_scaling.data.captioned_images.rules import Rules
from ldm_scaling.data.captioned_images.writing import (
    features,
    read_report,
    shard_file,
    write_shard,
)
from ldm_scaling.data.source import DataError

MAX_ID = 2**31 - 1  # example_id is an int32, as JAX's integers are


class CaptionedImages(tfds.core.dataset_builder.FileReaderBuilder):
    """Builds from the shards of a source.

    Args:
      shards: of `find_shards`.
      rules: what is kept.
      folder: for finished shards; what lies there of an earlier run is used.
      max_bad_share: see `Report.check`.
      options: of the Beam pipeline.
      about: JSON values that the report carries, too.
      **kwargs: of TFDS's builder.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First."}

    def __init__(
        self,
        *,
        shards: Sequence[Shard],
        rules: Rules,
        folder: Path,
        max_bad_share: float,
        options: PipelineOptions,
        about: dict[str, Any],
        **kwargs: Any,
    ):
        self._shards, self._rules, self._folder = list(shards), rules, folder
        self._max_bad_share, self._options, self._about = max_bad_share, options, about
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=f"Captioned images from {self._about['source']}.", features=features()
        )

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded."""

    def _log_download_done(self) -> None:
        """The caller says where the set is, once it has its place."""

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        # Beam would read our annotations as its own kind of types.
        self._options.view_as(TypeOptions).pipeline_type_check = False
        runner = None if self._options.get_all_options()["runner"] else _local_runner()
        with beam.Pipeline(runner=runner, options=self._options) as pipeline:
            write_all(pipeline, self._shards, self._rules, self._folder)
        report, splits = self._collect()
        text = report.to_json(**self._about)
        (self._folder / "report.json").write_text(text, "utf-8")
        logging.info("%s\n%s", self._about["source"], report.table())
        report.check(self._max_bad_share)
        shutil.copy2(self._folder / "report.json", self.data_path)
        infos = []
        for split, parts in splits.items():
            template = self._get_filename_template(split_name=split)
            for i, (index, _) in enumerate(parts):
                target = template.sharded_filepath(shard_index=i, num_shards=len(parts))
                os.replace(shard_file(self._folder, split, index), target)
            lengths = [length for _, length in parts]
            size = report.num_bytes[split]
            infos.append(
                tfds.core.SplitInfo(
                    name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
                )
            )
        self.info.set_splits(tfds.core.SplitDict(infos))

    def _collect(self) -> tuple[Report, dict[str, list[tuple[int, int]]]]:
        """The whole report, and split -> (shard, examples) of those that have any."""
        reports: list[Report] = []
        for index, shard in enumerate(self._shards):
            report = read_report(self._folder, index)
            if report is None:
                raise DataError(
                    f"{shard.name}: not written. Do the workers write to the folder of the command "
                    f"({self._folder})?"
                )
            reports.append(report)
        splits: dict[str, list[tuple[int, int]]] = {}
        for index, report in enumerate(reports):
            for split, count in report.kept.items():
                splits.setdefault(split, []).append((index, count))
        return Report.merge(reports), dict(sorted(splits.items()))


def write_all(pipeline: Any, shards: Sequence[Shard], rules: Rules, folder: Path) -> None:
    """Adds the steps: list all keys, find the double ones, write each shard without them."""
    numbered = pipeline | beam.Create(list(enumerate(shards))) | beam.Reshuffle()
    places = numbered | beam.FlatMap(_places)
    counts = places | beam.Map(lambda place: place[1][0]) | beam.combiners.Count.PerElement()
    first_ids = counts | beam.combiners.ToList() | beam.Map(_first_ids, len(shards))
    double = places | beam.GroupByKey() | beam.FlatMap(_double)
    (
        {"shard": numbered, "double": double}
        | beam.CoGroupByKey()
        | beam.Map(_write, beam.pvalue.AsSingleton(first_ids), rules, folder)
    )


def _places(numbered: tuple[int, Shard]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every entry's key and where it stands: (shard, place in the shard)."""
    index, shard = numbered
    for place, key in enumerate(shard.keys()):
        yield key, (index, place)


def _double(found: tuple[str, Iterable[tuple[int, int]]]) -> list[tuple[int, int]]:
    """All places of a key but the first."""
    return sorted(found[1])[1:]


def _first_ids(counts: list[tuple[int, int]], shards: int) -> list[int]:
    """The example_id of each shard's first entry, and at last the number of entries."""
    of = dict(counts)
    first = list(accumulate((of.get(index, 0) for index in range(shards)), initial=0))
    if first[-1] > MAX_ID:
        raise DataError(f"{first[-1]} entries: example_id ends at {MAX_ID}; prepare several sets")
    return first


def _write(
    grouped: tuple[int, dict[str, Iterable[Any]]], first_ids: list[int], rules: Rules, folder: Path
) -> None:
    index, found = grouped
    (shard,) = found["shard"]
    write_shard(shard, index, first_ids[index], set(found["double"]), rules, folder)


def _local_runner() -> Any:
    # By its name, "DirectRunner" would first try to download another one.
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    return FnApiRunner()
