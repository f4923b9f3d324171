"""What the points of a study are measured with, one after another."""

import abc
import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from ldm_scaling.diffusion import bucket
from ldm_scaling.evaluation.clip_score import captioned_images
from ldm_scaling.evaluation.folder import draw_folder
from ldm_scaling.evaluation.generate import Generator
from ldm_scaling.evaluation.model import Model, ModelCard
from ldm_scaling.evaluation.points import Point, study_protocol
from ldm_scaling.evaluation.preset_protocol import PresetProtocol, PresetScores
from ldm_scaling.evaluation.protocol import STRIP, Evaluator
from ldm_scaling.evaluation.protocol import Protocol as LiteProtocol
from ldm_scaling.evaluation.provenance import provenance
from ldm_scaling.evaluation.text import TextEncoder
from ldm_scaling.records import Metric, Record
from ldm_scaling.sharding import make_mesh


class Generators:
    """The generator of the model that is being measured, and what all of them share."""

    def __init__(self, config: ConfigDict):
        self.batch_size, self.mesh = config.batch_size, make_mesh(**config.mesh)
        self.bucket = bucket(max(s for grid in config.grids.values() for s in grid.steps))
        self._generator: Generator | None = None

    def of(self, card: ModelCard, minilm: TextEncoder | None = None) -> Generator:
        """Reads the model, unless it is the one of the last call; `minilm` as for `Model`."""
        if self._generator is None or self._generator.model.card != card:
            self._generator = None  # its weights make room first
            model = Model.from_folder(card.folder, minilm)
            self._generator = Generator(model, batch_size=self.batch_size, mesh=self.mesh)
        return self._generator


class Bench(abc.ABC):
    """Measures points; models and programs are kept while they last."""

    def __init__(self, generators: Generators, workdir: Path):
        self._generators, self._workdir = generators, workdir

    def real_images(self, card: ModelCard) -> list[Record]:
        """What real images score and what the scores are worth, where a protocol tells it."""
        return []

    @abc.abstractmethod
    def measure(
        self, point: Point, record: Record
    ) -> tuple[Record, list[UInt8[np.ndarray, "H W 3"]]]:
        """Draws and scores; returns the finished record and the first `STRIP` images."""

    def tidy(self, record: Record) -> None:  # noqa: B027 (most leave nothing behind)
        """Removes what a point left behind, once its record is safe."""


def open_bench(config: ConfigDict, workdir: Path) -> Bench:
    """The bench of a study's protocol."""
    protocol, generators = study_protocol(config), Generators(config)
    if isinstance(protocol, PresetProtocol):
        return _PresetBench(protocol, generators, workdir)
    return _Lite0Bench(protocol, generators, workdir)


class _Lite0Bench(Bench):
    """Images in memory against a split of a data set."""

    def __init__(self, protocol: LiteProtocol, generators: Generators, workdir: Path):
        super().__init__(generators, workdir)
        self._protocol, self._cache = protocol, workdir / "features"
        self._minilm: TextEncoder | None = None
        self._evaluator: Evaluator | None = None

    def measure(
        self, point: Point, record: Record
    ) -> tuple[Record, list[UInt8[np.ndarray, "H W 3"]]]:
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
            bucket=self._generators.bucket,
        )
        drawn = time.monotonic()
        metrics = evaluator.score(images)
        measured = _finished(record, point, model, context.shape[1], metrics, start, drawn)
        return measured, list(images[:STRIP])

    def real_images(self, card: ModelCard) -> list[Record]:
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
        self._minilm = self._minilm or TextEncoder.packaged()
        generator = self._generators.of(card, self._minilm)
        size = generator.image_size
        if self._evaluator is None:
            self._evaluator = Evaluator(self._protocol, size, self._minilm, self._cache)
        if self._evaluator.image_size != size:
            raise ValueError(
                f"models: {card.folder} makes images of {size} pixels, the one before it of "
                f"{self._evaluator.image_size}; one study compares images of one size"
            )
        return generator, self._evaluator


class _PresetBench(Bench):
    """Images in a folder for each point, so that one that was stopped is gone on with."""

    def __init__(self, protocol: PresetProtocol, generators: Generators, workdir: Path):
        super().__init__(generators, workdir)
        self._protocol = protocol
        self._scores: PresetScores | None = None

    def measure(
        self, point: Point, record: Record
    ) -> tuple[Record, list[UInt8[np.ndarray, "H W 3"]]]:
        start = time.monotonic()
        generator, captions = self._generators.of(point.card), self._protocol.drawn_captions()
        folder = self._folder(record)
        draw_folder(
            generator,
            captions,
            folder,
            sampler=point.sampler,
            steps=point.steps,
            spacing=point.spacing,
            eta=point.eta,
            guidance=point.guidance,
            seed=point.seed,
            bucket=self._generators.bucket,
        )
        drawn = time.monotonic()
        images = captioned_images(folder, captions)
        if self._scores is None:
            shared = self._generators
            cache = self._workdir / "features"
            self._scores = PresetScores(self._protocol, cache, shared.batch_size, shared.mesh)
        metrics, model = self._scores(images), generator.model
        tokens = model.text_encoder([""]).shape[1]
        measured = _finished(record, point, model, tokens, metrics, start, drawn)
        return measured, [images[i] for i in range(min(STRIP, len(images)))]

    def tidy(self, record: Record) -> None:
        if not self._protocol.keep_images:
            shutil.rmtree(self._folder(record))

    def _folder(self, record: Record) -> Path:
        return self._workdir / "drawn" / record.hash


def _finished(
    record: Record,
    point: Point,
    model: Model,
    tokens: int,
    metrics: Mapping[str, Metric],
    start: float,
    drawn: float,
) -> Record:
    return dataclasses.replace(
        record,
        metrics=metrics,
        costs=point.costs(model.unet, tokens=tokens),
        provenance=provenance({"draw": drawn - start, "score": time.monotonic() - drawn}),
    )
