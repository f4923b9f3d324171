"""A study: every point of a grid is drawn and scored once, and becomes one record.

A point is named before it is measured (by the hash of its record), so a study that was stopped, by
whatever, goes on with the points that have no record yet and ends with the same records as one
that ran through.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from ldm_scaling.evaluation.bench import open_bench
from ldm_scaling.evaluation.files import write_atomically
from ldm_scaling.evaluation.points import Point, study_points, study_protocol
from ldm_scaling.records import Record, append_record, read_records

TILE = 256  # pixels of an image in a strip, at most


def planned(config: ConfigDict) -> list[tuple[Point, Record]]:
    """Every point of a study with its record, still without metrics. Raises as `study_points`."""
    found, protocol = study_points(config), study_protocol(config)
    described = protocol.describe()
    pairs = [(point, point.record(protocol.num_samples, described)) for point in found]
    named: dict[str, Point] = {}
    for point, record in pairs:
        if record.hash in named:
            raise ValueError(f"grids, models, seeds: list the same point twice: {point}")
        named[record.hash] = point
    return pairs


def study_records(workdir: str | os.PathLike[str]) -> list[Record]:
    """All records in a study's folder, also those that jobs of an array wrote; [] where none."""
    return read_records(sorted(Path(workdir).glob("records*.jsonl")))


def listing(config: ConfigDict, workdir: str | os.PathLike[str]) -> list[str]:
    """One line a point: index, hash of its record, "done" or "open", and the setting."""
    done = {record.hash for record in study_records(workdir)}
    lines = []
    for index, (_, record) in enumerate(planned(config)):
        state = "done" if record.hash in done else "open"
        setting = " ".join(f"{name}={value}" for name, value in record.point.items())
        lines.append(f"{index:5d} {record.hash} {state} {setting} seed={record.seed}")
    return lines


def run(
    config: ConfigDict, workdir: str | os.PathLike[str], indices: Sequence[int] | None = None
) -> list[Record]:
    """Measures the points that have no record in `workdir` yet.

    Args:
      config: what `study_points` reads; `protocol`, fields of `Protocol`; `batch_size`, images
        drawn at a time; `mesh`, sizes of the mesh's axes.
      workdir: gets records.jsonl, samples/<hash>.png (the first captions' images, side by side)
        and features/.
      index: measure only this point, into a records file of its own, so that concurrent jobs can
        share a folder.

    Returns:
      All records that `workdir` now holds.

    Raises:
      ValueError, FileNotFoundError: as `study_points`; an index out of range.
    """
    workdir = Path(workdir)
    wanted = planned(config)
    name = "records.jsonl"
    if indices is not None:
        for index in indices:
            if not 0 <= index < len(wanted):
                raise ValueError(f"index={index}: the study has points 0..{len(wanted) - 1}")
        wanted = [wanted[index] for index in indices]
        name = f"records-{min(indices):05d}.jsonl"
    path = workdir / name
    done = {record.hash for record in study_records(workdir)}
    todo = [(point, record) for point, record in wanted if record.hash not in done]
    bench = open_bench(config, workdir)
    if todo:
        for record in bench.real_images(todo[0][0].card):
            if record.hash not in done:
                append_record(path, record)
    bar = tqdm(todo, "study", total=len(wanted), initial=len(wanted) - len(todo), unit="point")
    for point, record in bar:
        bar.set_postfix_str(
            f"c={point.card.width} {point.sampler} {point.steps} steps, guidance {point.guidance:g}"
        )
        measured, first_images = bench.measure(point, record)
        write_atomically(workdir / "samples" / f"{record.hash}.png", _strip(first_images))
        append_record(path, measured)
        bench.tidy(record)
    return study_records(workdir)


def _strip(images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Callable[[IO[bytes]], None]:
    """A writer of one PNG, the images side by side; large ones at `TILE` pixels."""
    side = min(len(images[0]), TILE)
    tiles = [np.asarray(Image.fromarray(image).resize((side, side))) for image in images]
    return lambda file: Image.fromarray(np.hstack(tiles)).save(file, "png")
