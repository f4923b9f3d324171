"""The Fréchet distance that infinitely many images would have (arXiv:1911.07023).

At N images the distance is biased upwards, and the bias is close to c / N with a `c` that the model
decides: two models may change places as N grows. A line through distances of subsets, against
1 / N, meets 1 / N = 0 where the bias is gone.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from ldm_scaling.metrics.frechet import Gaussian, warn_of_low_rank


@dataclasses.dataclass(frozen=True)
class FrechetInfinity:
    """The line, and what it was fitted to.

    Attributes:
      value: the distance at 1 / N = 0. May fall below zero by chance where it is small.
      slope: of the line: the bias is slope / N.
      counts: images of each subset, [points].
      distances: of the subsets, [points].
    """

    value: float
    slope: float
    counts: Int[np.ndarray, "points"]
    distances: Float[np.ndarray, "points"]


def frechet_infinity(
    features: Float[np.ndarray, "N D"],
    reference: Gaussian,
    *,
    smallest: int | None = None,
    points: int = 15,
    seed: int = 0,
) -> FrechetInfinity:
    """Fits distance = value + slope / N to random subsets of the generated images.

    The reference's own bias stays: it is the same for every model.

    Args:
      features: generated images.
      reference: fitted to real images.
      smallest: images of the smallest subset; default N / 10, as the paper takes 5,000 of 50,000.
        Warns where it is not above D: the bias is not c / N there.
      points: subsets, of sizes evenly spaced from `smallest` to N.
      seed: of the choice of subsets.

    Raises:
      ValueError: fewer than two sizes.
    """
    count, size = features.shape
    smallest = count // 10 if smallest is None else smallest
    if not 2 <= smallest < count or points < 2:
        raise ValueError(
            f"smallest={smallest}, points={points}: a line needs 2 sizes between 2 and the "
            f"{count} images"
        )
    warn_of_low_rank("smallest subset", smallest, size)
    rng = np.random.default_rng(seed)
    counts = np.linspace(smallest, count, points).astype(np.int64)
    distances = np.array(
        [
            Gaussian.from_features(features[rng.choice(count, n, replace=False)]).frechet(reference)
            for n in counts
        ]
    )
    slope, value = np.polyfit(1.0 / counts, distances, 1)
    return FrechetInfinity(float(value), float(slope), counts, distances)
