"""What images are drawn for and held against: the part of a study that all points share."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from ldm_scaling import metrics
from ldm_scaling.data import Resize, open_source
from ldm_scaling.evaluation.features import Lite0
from ldm_scaling.evaluation.score import Reference, score
from ldm_scaling.evaluation.text import TextEncoder, sentence_embeddings
from ldm_scaling.records import Metric

STRIP = 8  # images of a point that are kept for pictures


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Settings that decide what a score means; scores under different ones do not compare.

    Attributes:
      dataset: name or folder, see `ldm_scaling.data.open_source`.
      captions: split whose captions are drawn, in a fixed pseudo-random choice. "train" measures
        how well the training distribution is learnt, "test" what a model makes of captions it
        never saw.
      prompts: captions to draw in place of a split's.
      reference: split of the images that generated ones are held against.
      variants: whether skin-tone variants count as images and captions of their own.
      captions_seed: of the choice of captions.
      num_samples: images a point; captions repeat where there are fewer.
      feature_size: side in pixels at which Lite0 sees an image.
      resamples: bootstrap resamples behind an interval.
    """

    dataset: str = "noto_emoji"
    captions: str = "train"
    prompts: tuple[str, ...] = ()
    reference: str = "train"
    variants: bool = False
    captions_seed: int = 0
    num_samples: int = 128
    feature_size: int = 128
    resamples: int = 200

    def __post_init__(self):
        if self.num_samples < 4:
            raise ValueError(f"num_samples={self.num_samples}: metrics need at least 4 images")

    def drawn_captions(self) -> list[str]:
        """The caption of each of the `num_samples` images."""
        if self.prompts:
            return [self.prompts[i % len(self.prompts)] for i in range(self.num_samples)]
        _, captions = load_split(self.dataset, self.captions, self.variants)
        chosen = _choice(len(captions), self.num_samples, self.captions_seed)
        return [captions[i] for i in chosen]

    def describe(self) -> dict[str, Any]:
        """For a record's `protocol`: JSON values, without what the record says elsewhere.

        The captions themselves are in it, by their hash, and the first of them, of which pictures
        are kept, in words.
        """
        fields = dataclasses.asdict(self)
        del fields["num_samples"], fields["prompts"]
        drawn = self.drawn_captions()
        return {
            **fields,
            "captions": "prompts" if self.prompts else self.captions,
            "captions_hash": hashlib.sha256("\n".join(drawn).encode()).hexdigest()[:12],
            "strip_captions": drawn[:STRIP],
            "features": "efficientnet_lite0",
        }


class Evaluator:
    """A protocol made ready: captions chosen, the reference's features at hand, alignment fitted.

    Attributes:
      protocol: the settings.
      captions: of the images to draw, `num_samples` of them.
      image_size: side of the images, in pixels.
      calibration: what the alignment score says about held-out real images and captions.
    """

    def __init__(self, protocol: Protocol, image_size: int, text_encoder: TextEncoder, cache: Path):
        """Reads the data set and computes, or finds in `cache`, the features of real images.

        Args:
          protocol: the settings.
          image_size: of generated images; real ones are brought to it as in training.
          text_encoder: MiniLM, for the captions' side of alignment.
          cache: folder.
        """
        self.protocol, self._text_encoder, self._cache = protocol, text_encoder, cache
        self.image_size = image_size
        self._lite0 = Lite0(protocol.feature_size)
        self.captions = protocol.drawn_captions()
        self._embeddings = sentence_embeddings(text_encoder.cached(self.captions, cache))
        self._reference = Reference.of(self._features(protocol.reference))
        self._alignment = metrics.fit_alignment(*self._pairs("train"))
        self.calibration = metrics.calibrate(self._alignment, *self._pairs("test"))
        logging.info("Alignment on real images it was not fitted to: %s", self.calibration)

    def score(self, images: UInt8[np.ndarray, "N H W 3"]) -> Mapping[str, Metric]:
        """All metrics of one image per caption of `captions`."""
        return self._score(self._lite0(images), self._embeddings)

    def score_real(self, split: str = "test") -> tuple[Mapping[str, Metric], int]:
        """The metrics of as many real images of `split`, or all it has: what is worth reaching.

        Returns:
          The metrics and the number of images.
        """
        features, captions = self._pairs(split)
        chosen = _choice(len(features), self.protocol.num_samples, self.protocol.captions_seed)
        chosen = chosen[: len(features)]
        return self._score(features[chosen], captions[chosen]), len(chosen)

    def _score(self, features: np.ndarray, captions: np.ndarray) -> Mapping[str, Metric]:
        return score(
            features,
            captions,
            self._reference,
            self._alignment,
            resamples=self.protocol.resamples,
        )

    def _features(self, split: str) -> Float[np.ndarray, "M D"]:
        images, _ = self._load(split)
        fit, rng = Resize(self.image_size), np.random.default_rng(0)  # a central crop ignores it
        fitted = np.stack([fit({"image": image}, rng)["image"] for image in images])
        return self._lite0.cached(fitted, self._cache)

    def _pairs(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Features of a split's images and embeddings of their captions, [M, D] and [M, E]."""
        context = self._text_encoder.cached(self._load(split)[1], self._cache)
        return self._features(split), sentence_embeddings(context)

    def _load(self, split: str) -> tuple[list[np.ndarray], list[str]]:
        return load_split(self.protocol.dataset, split, self.protocol.variants)


@functools.lru_cache(maxsize=4)
def load_split(
    dataset: str, split: str, variants: bool
) -> tuple[list[UInt8[np.ndarray, "_ _ 3"]], list[str]]:
    """Images and captions of a split, in the order of the data set."""
    source = open_source(dataset, split)
    examples = [source[i] for i in range(len(source))]
    kept = [e for e in examples if variants or not e.get("variant")]
    return [e["image"] for e in kept], [e["caption"] for e in kept]


def _choice(available: int, wanted: int, seed: int) -> np.ndarray:
    """`wanted` indices in a fixed random order; each once before any comes again."""
    order = np.random.default_rng(seed).permutation(available)
    return order[np.arange(wanted) % available]
