"""From a source to a prepared data set, in one call that can be repeated until it is done."""

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from ldm_scaling.data.captioned_images.finding import find_shards
from ldm_scaling.data.captioned_images.report import Report
from ldm_scaling.data.captioned_images.rules import Rules
from ldm_scaling.data.source import DataError


def prepare(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    rules: Rules | None = None,
    *,
    kind: str = "auto",
    caption_field: str = "",
    score_field: str = "",
    max_bad_share: float = 0.01,
    workers: int = 1,
    beam_options: Sequence[str] = (),
) -> Report:
    """Prepares `source` as a TFDS data set in `output`, which `data.open_source` opens.

    The set appears whole or not at all. Finished shards wait in OUTPUT.partial: a call that was
    interrupted, or that ended because too much was bad, goes on from there when it is repeated
    with the same source and rules. Equal input gives equal files whatever the number of workers.

    Args:
      source, kind, caption_field, score_field: see `find_shards`.
      output: folder to make, on this machine or mounted by all workers.
      rules: what is kept; the defaults of `Rules` if None.
      max_bad_share: share of the entries, and of the shards, that may be bad (`entries.BAD`).
      workers: processes on this machine; 1 works in this process.
      beam_options: options of Apache Beam, such as "--runner=FlinkRunner"; instead of `workers`.

    Returns:
      What became of the entries; also in report.json beside the data.

    Raises:
      DataError: no source, an output that is there already, or too much that is bad.
      ImportError: Apache Beam is not installed.
    """
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"max_bad_share={max_bad_share}: a share lies between 0 and 1")
    if workers < 1:
        raise ValueError(f"workers={workers}: at least 1 has to work")
    rules, target = rules or Rules(), Path(output).absolute()
    if target.exists():
        raise DataError(f"output={str(output)!r}: is there already; delete it or name another")
    shards = find_shards(
        Path(source),
        kind,
        max_bytes=rules.max_bytes,
        caption_field=caption_field,
        score_field=score_field,
    )
    about: dict[str, Any] = {
        "source": str(source),
        "kind": type(shards[0]).__name__,
        "caption_field": caption_field,
        "score_field": score_field,
        "rules": dataclasses.asdict(rules),
    }
    work = target.with_name(target.name + ".partial")
    _claim(work, {**about, "names": [shard.name for shard in shards]})
    logging.info("%s: %d shards of kind %s", source, len(shards), about["kind"])
    builder = _builder(
        shards=shards,
        rules=rules,
        folder=work,
        max_bad_share=max_bad_share,
        options=_options(workers, beam_options),
        about=about,
        data_dir=work / "tfds",
    )
    builder.download_and_prepare(download_config=_no_download())
    report = Report.from_dict(json.loads((work / "report.json").read_bytes()))
    os.replace(builder.data_path.parent, target)  # with the folder of the version in it
    shutil.rmtree(work)
    return report


def _claim(work: Path, identity: dict[str, Any]) -> None:
    """Makes the folder, or empties it where it holds shards of another source or other rules."""
    path = work / "identity.json"
    text = json.dumps(identity, indent=1, sort_keys=True)
    if path.is_file() and path.read_text("utf-8") == text:
        logging.info("Going on with the finished shards in %s", work)
        return
    if work.exists() and any(work.iterdir()) and not path.is_file():
        raise DataError(f"{work}: in the way, and not made by this command; move it elsewhere")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    path.write_text(text, "utf-8")


def _builder(**arguments: Any) -> Any:
    try:
        from ldm_scaling.data.captioned_images.builder import CaptionedImages
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise ImportError(
            "preparing data needs Apache Beam; install it with "
            '`pip install -c launch/constraints.txt -e ".[data]"`'
        ) from error
    shutil.rmtree(arguments["data_dir"], ignore_errors=True)  # of a call that was interrupted
    return CaptionedImages(**arguments)


def _options(workers: int, beam_options: Sequence[str]) -> Any:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError:
        return None  # `_builder` says what is missing
    local = [f"--direct_num_workers={workers}"]
    local.append(f"--direct_running_mode={'in_memory' if workers == 1 else 'multi_processing'}")
    return PipelineOptions(list(beam_options) or local)


def _no_download() -> Any:
    import tensorflow_datasets as tfds

    return tfds.download.DownloadConfig(try_download_gcs=False)
