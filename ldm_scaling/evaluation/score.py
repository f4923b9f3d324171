"""How good a set of generated images is: every metric, an interval for each.

Metrics carry the name of the network whose features they are of, and are comparable with nothing
else. Studies use EfficientNet-Lite0's (ImageNet, 1280-d), because its weights come in a package.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from ldm_scaling import metrics
from ldm_scaling.records import Metric

PRECISION_K = 3  # arXiv:1904.06991, section 3


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images, with all that depends on them alone computed once.

    Attributes:
      features: [M, D].
      gaussian: fitted to them.
      row_sums: of their kernel matrix, [M].
      radii: squared distances to their third nearest neighbours, [M].
    """

    features: Float[np.ndarray, "M D"]
    gaussian: metrics.Gaussian
    row_sums: Float[np.ndarray, "M"]
    radii: Float[np.ndarray, "M"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "M D"]) -> "Reference":
        """Computes everything from features, M > 3."""
        return cls(
            features,
            metrics.Gaussian.from_features(features),
            metrics.kernel_row_sums(features),
            metrics.neighbour_radii(features, PRECISION_K),
        )


def score(
    features: Float[np.ndarray, "N D"],
    captions: Float[np.ndarray, "N E"],
    reference: Reference,
    alignment: metrics.Alignment,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Mapping[str, Metric]:
    """All metrics of a set of generated images, with 95 % bootstrap intervals.

    Args:
      features: Lite0 features of the generated images, N > 3.
      captions: sentence embeddings of what they were to show.
      reference: real images.
      alignment: fitted between real images and their captions.
      resamples, seed: as for `feature_scores`.

    Returns:
      What `feature_scores` finds, named for Lite0, and "alignment_lite0_minilm" in [-1, 1].
    """
    cosines = alignment.scores(features, captions)
    counts = metrics.resampling_counts(len(features), resamples, seed)
    return {
        **feature_scores(features, reference, "lite0", resamples=resamples, seed=seed),
        "alignment_lite0_minilm": _metric(
            float(cosines.mean()), metrics.resampled_means(cosines, counts), -1.0, 1.0
        ),
    }


def feature_scores(
    features: Float[np.ndarray, "N D"],
    reference: Reference,
    name: str,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Mapping[str, Metric]:
    """Distances between sets of features, and precision and recall, with 95 % bootstrap intervals.

    Intervals say what other images from the same model would change, against the same reference;
    recall's, a share of real images, says what other real images would change.

    Args:
      features: of the generated images, N > 3.
      reference: real images, features of the same network.
      name: of the network, which the scores carry. `FeatureNetwork.name` says all that matters:
        with published weights "fd_inception_legacy" is pytorch-fid's FID, "fd_inception_clean"
        clean-fid's.
      resamples: bootstrap resamples.
      seed: of the resamples.

    Returns:
      "fd_<name>" (squared Fréchet distance; biased upwards at small N, so compare equal N only),
      "kd_<name>" (unbiased, may be negative), "precision_<name>", "recall_<name>" in [0, 1].
    """
    counts = metrics.resampling_counts(len(features), resamples, seed)
    shares = metrics.precision_recall(features, reference.features, PRECISION_K, reference.radii)
    inside, covered = (
        indicator.astype(np.float64)
        for indicator in (shares.generated_inside, shares.reference_inside)
    )
    reference_counts = metrics.resampling_counts(len(covered), resamples, seed)
    distance = metrics.kernel_distance(features, reference.features, reference.row_sums)
    return {
        f"fd_{name}": _metric(
            metrics.Gaussian.from_features(features).frechet(reference.gaussian),
            metrics.frechet_resampled(features, reference.gaussian, counts),
            low=0.0,
        ),
        f"kd_{name}": _metric(
            distance.value,
            metrics.kernel_distance_resampled(features, reference.features, counts),
        ),
        f"precision_{name}": _metric(
            shares.precision, metrics.resampled_means(inside, counts), 0.0, 1.0
        ),
        f"recall_{name}": _metric(
            shares.recall, metrics.resampled_means(covered, reference_counts), 0.0, 1.0
        ),
    }


def _metric(
    value: float, replicates: np.ndarray, low: float = -np.inf, high: float = np.inf
) -> Metric:
    below, above = metrics.interval(value, replicates)
    return Metric(value, max(below, low), min(above, high))
