"""A study: every point of a grid is drawn and scored once, and becomes one record.

A point is named before it is measured (by the hash of its record), so a study that was stopped, by
whatever, goes on with the points that have no record yet and ends with the same records as one
that ran through.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from ldm_scaling import __version__
from ldm_scaling.diffusion import bucket
from ldm_scaling.evaluation.files import write_atomically
from ldm_scaling.evaluation.generate import Generator
from ldm_scaling.evaluation.model import Model, ModelCard
from ldm_scaling.evaluation.points import Point, study_points, study_protocol
from ldm_scaling.evaluation.protocol import STRIP, Evaluator
from ldm_scaling.evaluation.text import TextEncoder
from ldm_scaling.records import Metric, Record, append_record, read_records
from ldm_scaling.sharding import make_mesh


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
    config: ConfigDict, workdir: str | os.PathLike[str], index: int | None = None
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
      ValueError, FileNotFoundError: as `study_points`; `index` out of range.
    """
    workdir = Path(workdir)
    wanted = planned(config)
    if index is not None:
        if not 0 <= index < len(wanted):
            raise ValueError(f"index={index}: the study has points 0..{len(wanted) - 1}")
        wanted = wanted[index : index + 1]
    path = workdir / ("records.jsonl" if index is None else f"records-{index:05d}.jsonl")
    done = {record.hash for record in study_records(workdir)}
    todo = [(point, record) for point, record in wanted if record.hash not in done]
    bench = _Bench(config, workdir)
    if todo:
        for record in bench.records_of_real_images(todo[0][0].card):
            if record.hash not in done:
                append_record(path, record)
    bar = tqdm(todo, "study", total=len(wanted), initial=len(wanted) - len(todo), unit="point")
    for point, record in bar:
        bar.set_postfix_str(
            f"c={point.card.width} {point.sampler} {point.steps} steps, guidance {point.guidance:g}"
        )
        images, measured = bench.measure(point, record)
        write_atomically(workdir / "samples" / f"{record.hash}.png", _strip(images[:STRIP]))
        append_record(path, measured)
    return study_records(workdir)


class _Bench:
    """What one point after another is measured with: model and program are kept while they last."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self._config, self._cache = config, workdir / "features"
        self._protocol = study_protocol(config)
        self._bucket = bucket(max(s for grid in config.grids.values() for s in grid.steps))
        self._minilm: TextEncoder | None = None
        self._evaluator: Evaluator | None = None
        self._generator: Generator | None = None

    def measure(self, point: Point, record: Record) -> tuple[UInt8[np.ndarray, "N H W 3"], Record]:
        """Draws and scores; returns the images and the finished record."""
        start = time.monotonic()
        generator, evaluator = self._prepare(point.card)
        model = generator.model
        context = model.text_encoder.cached(evaluator.captions, self._cache)
        unconditional = model.text_encoder.cached([""], self._cache)
        images = generator(
            context,
            unconditional,
            np.arange(len(context)),
            point.table(model.schedule),
            guidance=point.guidance,
            seed=point.seed,
            bucket=self._bucket,
        )
        drawn = time.monotonic()
        metrics = evaluator.score(images)
        seconds = {"draw": drawn - start, "score": time.monotonic() - drawn}
        return images, dataclasses.replace(
            record,
            metrics=metrics,
            costs=point.costs(model.unet, tokens=context.shape[1]),
            provenance=provenance(seconds),
        )

    def records_of_real_images(self, card: ModelCard) -> list[Record]:
        """What real images score, and what the alignment score is worth: once a study."""
        _, evaluator = self._prepare(card)
        common: dict[str, Any] = {
            "seed": 0,
            "protocol": self._protocol.describe(),
            "provenance": provenance({}),
        }
        point = {"split": "test", "image_size": evaluator.image_size}
        metrics, count = evaluator.score_real("test")
        calibration = dataclasses.asdict(evaluator.calibration)
        held_out = calibration.pop("count")
        worth = {name: Metric(value) for name, value in calibration.items()}
        return [
            Record("real_images", point, num_samples=count, metrics=metrics, **common),
            Record("alignment_calibration", point, num_samples=held_out, metrics=worth, **common),
        ]

    def _prepare(self, card: ModelCard) -> tuple[Generator, Evaluator]:
        if self._minilm is None:
            self._minilm = TextEncoder.packaged()
        if self._generator is None or self._generator.model.card != card:
            mesh = make_mesh(**self._config.mesh)
            model = Model.from_folder(card.folder, self._minilm)
            self._generator = Generator(model, batch_size=self._config.batch_size, mesh=mesh)
        size = self._generator.image_size
        if self._evaluator is None:
            self._evaluator = Evaluator(self._protocol, size, self._minilm, self._cache)
        if self._evaluator.image_size != size:
            raise ValueError(
                f"models: {card.folder} makes images of {size} pixels, the one before it of "
                f"{self._evaluator.image_size}; one study compares images of one size"
            )
        return self._generator, self._evaluator


def provenance(seconds: dict[str, float]) -> dict[str, Any]:
    """What made a record: versions, machine, time of day (UTC) and durations."""
    packages = ("jax", "jaxlib", "flax", "numpy", "scipy")
    return {
        "versions": {"ldm_scaling": __version__, **{name: version(name) for name in packages}},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _strip(images: UInt8[np.ndarray, "K H W 3"]) -> Callable[[IO[bytes]], None]:
    """A writer of one PNG, the images side by side."""
    return lambda file: Image.fromarray(np.hstack(list(images))).save(file, "png")
