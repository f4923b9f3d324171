"""Bootstrap intervals over images.

A resample is a row of counts (how often each image was drawn), not a list of indices: statistics
that are polynomial in the empirical measure (means, covariances, U-statistics) are then matrix
products over all resamples at once.
"""

import numpy as np
from jaxtyping import Float, Int


def resampling_counts(count: int, resamples: int, seed: int = 0) -> Int[np.ndarray, "R N"]:
    """How often each of `count` images is drawn, in each of `resamples` draws with replacement.

    Rows sum to `count`. The same arguments give the same counts on every machine.
    """
    if count < 2:
        raise ValueError(f"count={count}: resampling needs at least 2 images")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: at least 1 is needed")
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1.0 / count), size=resamples)


def resampled_means(
    values: Float[np.ndarray, "N"], counts: Int[np.ndarray, "R N"]
) -> Float[np.ndarray, "R"]:
    """The mean of `values` in each resample."""
    return counts @ np.asarray(values, np.float64) / counts.sum(axis=1)


def interval(
    value: float, replicates: Float[np.ndarray, "R"], level: float = 0.95
) -> tuple[float, float]:
    """Central bootstrap interval around `value`: (low, high).

    Quantiles of the replicates' deviations from *their own* mean, laid at the estimate. A resample
    repeats images, so it has less rank and less spread than the sample; a Fréchet distance
    of it is biased upwards by more than its own scatter, and plain percentiles would not even
    contain the estimate. Removing the replicates' mean leaves the scatter, which is what the
    interval is for; the estimate's own bias at finite N is not removed.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: a coverage lies between 0 and 1, e.g. 0.95")
    tail = 50 * (1 - level)
    low, high = np.percentile(replicates - np.mean(replicates), [tail, 100 - tail])
    return float(value + low), float(value + high)
