"""How far generated images are from real ones: what `launch/eval_fid.py` measures.

A number is called FID, KID or Inception score only where Inception's published weights gave it;
with other weights or another network it is named after them ("fd_lite0_224").
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ldm_scaling import metrics
from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.evaluation import presets
from ldm_scaling.evaluation.batches import through
from ldm_scaling.evaluation.captions import read_captions
from ldm_scaling.evaluation.features import FeatureNetwork, Inception
from ldm_scaling.evaluation.files import open_npz
from ldm_scaling.evaluation.folder import METADATA
from ldm_scaling.evaluation.image_sets import ImageSet, drawn_facts, keys_hash, open_images
from ldm_scaling.evaluation.provenance import provenance
from ldm_scaling.evaluation.statistics import load_gaussian, save_statistics
from ldm_scaling.hosts import is_first
from ldm_scaling.naming import check_name
from ldm_scaling.records import Metric, Record

METRICS = {
    "fid": "Fréchet distance",
    "fid_infinity": "its value for infinitely many images",
    "kid": "kernel distance, over subsets as torch-fidelity takes them",
    "is": "Inception score, of the generated images alone",
    "prdc": "precision and recall, density and coverage",
}
NEIGHBOURS = (
    3,
    5,
)  # of precision and recall (arXiv:1904.06991); of density and coverage (2002.09797)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images, as far as they are known.

    Attributes:
      name: file, folder or data set, for a record.
      gaussian: fitted to their features.
      features: None where statistics are all there is.
    """

    name: str
    gaussian: metrics.Gaussian
    features: Float[np.ndarray, "M D"] | None


def open_reference(
    network: FeatureNetwork,
    name: str,
    save: Path | None = None,
    choose: Callable[[ImageSet], ImageSet] = lambda images: images,
) -> Reference:
    """Reads statistics (.npz with "mu" and "sigma"), or computes features of real images.

    Args:
      network: whose features are compared.
      name: see `open_images`; or statistics as pytorch-fid, clean-fid and `save` write them.
      save: where to write the statistics, so that the images need not be seen again.
      choose: which of the images, and how they are brought to size.

    Raises: as `open_images` and `load_gaussian`; ValueError for statistics of other features.
    """
    if _is_statistics(name):
        gaussian = load_gaussian(name)
        if len(gaussian.mean) != network.dimension:
            raise ValueError(
                f"{name}: statistics of {len(gaussian.mean)} features; {network.name} has "
                f"{network.dimension}"
            )
        return Reference(name, gaussian, None)
    features = through(network, choose(open_images(name)), "features")
    metrics.warn_of_low_rank(name, *features.shape)
    if save is not None and is_first():
        save_statistics(save, metrics.FeatureStatistics.of(features))
    return Reference(name, metrics.Gaussian.from_features(features), features)


def distance_record(
    network: FeatureNetwork,
    samples: str,
    reference: str,
    wanted: Sequence[str] = ("fid", "kid", "is"),
    *,
    published: bool = True,
    save_reference: Path | None = None,
    resamples: int = 0,
    preset: str = "",
) -> Record:
    """Measures generated images against real ones; several processes share the images.

    Args:
      network: makes the features.
      samples: generated images, see `open_images`.
      reference: real ones, see `open_reference`.
      wanted: of `METRICS`. Those that need the features of real images are left out, with a
        warning in the record's protocol, where the reference is statistics alone.
      published: whether the network's weights are those that give its metrics their names.
      save_reference: see `open_reference`.
      resamples: bootstrap resamples behind an interval of the Fréchet distance; 0 for none.
      preset: of `presets.PRESETS`: the real images are those that the captions of `samples` name,
        brought to size as it says. "" takes all of `reference` as they are.

    Raises:
      ValueError: an unknown metric, unreadable images, fewer images than a metric needs, or
        features that are not the preset's.
    """
    for name in wanted:
        check_name("metrics", name, METRICS)
    if _is_statistics(samples):
        raise ValueError(f"samples={samples}: statistics; give the images that are to be scored")
    images = open_images(samples)
    choose = _chooser(preset, network, samples) if preset else (lambda images: images)
    real = open_reference(network, reference, save_reference, choose)
    found = distances(network, images, real, wanted, published=published, resamples=resamples)
    return Record(
        kind="distance",
        **drawn_facts(samples),
        num_samples=len(images),
        metrics=found.metrics,
        protocol={
            "features": network.name,
            "features_hash": weights_hash(network.params),
            "published_weights": published,
            "reference": real.name,
            "images_hash": keys_hash(images),
            "left_out": found.left_out,
            **({"preset": preset} if preset else {}),
        },
        provenance=provenance({}),
    )


class Distances(NamedTuple):
    """Metrics by their names, and which of `METRICS` could not be had from what was given."""

    metrics: dict[str, Metric]
    left_out: list[str]


def distances(
    network: FeatureNetwork,
    images: ImageSet,
    real: Reference,
    wanted: Sequence[str],
    *,
    published: bool,
    resamples: int = 0,
) -> Distances:
    """The metrics of `distance_record`; see there."""
    possible = [name for name in wanted if real.features is not None or name not in ("kid", "prdc")]
    if "is" in possible and not isinstance(network, Inception):
        possible.remove("is")
    features = through(network, images, "features")
    metrics.warn_of_low_rank("samples", *features.shape)
    found: dict[str, Metric] = {}
    for name in possible:
        found |= _MEASURES[name](network, features, real, resamples)
    tag = "" if published and isinstance(network, Inception) else f"_{network.name}"
    return Distances(
        {_named(name, tag): metric for name, metric in found.items()},
        [name for name in wanted if name not in possible],
    )


def _chooser(preset: str, network: FeatureNetwork, samples: str) -> Callable[[ImageSet], ImageSet]:
    wanted = f"inception_{presets.preset(preset).resize}"
    if network.name != wanted:
        raise ValueError(f"preset={preset} is measured with {wanted}, not {network.name}")
    captions = read_captions(Path(samples) / METADATA)
    return lambda images: presets.preset_reference(preset, images, captions)


def _named(name: str, tag: str) -> str:
    """The field's names are for its weights alone: "fid" is "fd_..." of any others."""
    plain = {"fid": "fd", "fid_infinity": "fd_infinity", "kid": "kd", "inception_score": "score"}
    return f"{plain.get(name, name)}{tag}" if tag else name


def _is_statistics(name: str | Path) -> bool:
    if Path(name).suffix != ".npz" or not Path(name).is_file():
        return False
    with open_npz(name) as file:
        return "mu" in file and "sigma" in file


def _fid(network: Any, features: np.ndarray, real: Reference, resamples: int) -> dict[str, Metric]:
    value = metrics.Gaussian.from_features(features).frechet(real.gaussian)
    if not resamples:
        return {"fid": Metric(value)}
    counts = metrics.resampling_counts(len(features), resamples, 0)
    low, high = metrics.interval(value, metrics.frechet_resampled(features, real.gaussian, counts))
    return {"fid": Metric(value, max(low, 0.0), high)}


def _infinity(network: Any, features: np.ndarray, real: Reference, _: int) -> dict[str, Metric]:
    return {"fid_infinity": Metric(metrics.frechet_infinity(features, real.gaussian).value)}


def _kid(network: Any, features: np.ndarray, real: Reference, _: int) -> dict[str, Metric]:
    assert real.features is not None
    size = min(1000, len(features), len(real.features))
    found = metrics.kid(features, real.features, subset_size=size)
    return {"kid": Metric(found.mean)}


def _inception_score(
    network: Any, features: np.ndarray, real: Reference, _: int
) -> dict[str, Metric]:
    return {
        "inception_score": Metric(metrics.inception_score(network.unbiased_logits(features)).mean)
    }


def _prdc(network: Any, features: np.ndarray, real: Reference, _: int) -> dict[str, Metric]:
    assert real.features is not None
    shares = metrics.precision_recall(features, real.features, NEIGHBOURS[0])
    cover = metrics.density_coverage(features, real.features, NEIGHBOURS[1])
    return {
        "precision": Metric(shares.precision),
        "recall": Metric(shares.recall),
        "density": Metric(cover.density),
        "coverage": Metric(cover.coverage),
    }


_MEASURES = {
    "fid": _fid,
    "fid_infinity": _infinity,
    "kid": _kid,
    "is": _inception_score,
    "prdc": _prdc,
}
