"""Kernel distance: unbiased squared MMD with the polynomial kernel of KID (arXiv:1801.01401, 3).

Unlike the Fréchet distance its expectation does not depend on the number of images, so it is the
number to trust in small studies. `kernel_distance` uses all pairs, in blocks of rows; its variance
is the jackknife's, which for a U-statistic needs row sums only. `kid` uses random subsets, as those
do whose numbers it is to be held against.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_BLOCK = 1024  # rows of the kernel matrix held at a time: 30k images fit in 250 MB


class KernelDistance(NamedTuple):
    """An estimate of squared MMD and the variance of that estimate."""

    value: float
    variance: float


class SubsetMean(NamedTuple):
    """Mean of a score over subsets of the images, and its standard deviation between them."""

    mean: float
    std: float


def polynomial_kernel(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]
) -> Float[np.ndarray, "N M"]:
    """k(x, y) = (x . y / D + 1)^3, in float64."""
    products = np.asarray(x, np.float64) @ np.asarray(y, np.float64).T
    return (products / x.shape[1] + 1.0) ** 3


def kernel_row_sums(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N"]:
    """For every image, the sum of its kernel with all others of the set."""
    sums = np.zeros(len(features))
    for rows in _blocks(len(features)):
        block = polynomial_kernel(features[rows], features)
        _clear_diagonal(block, rows)
        sums[rows] = block.sum(axis=1)
    return sums


def kernel_distance(
    features: Float[np.ndarray, "N D"],
    reference: Float[np.ndarray, "M D"],
    reference_row_sums: Float[np.ndarray, "M"] | None = None,
) -> KernelDistance:
    """Unbiased squared MMD of two sets of features; may be negative. N, M >= 3.

    The value is the mean of k over distinct pairs in each set, less twice the mean of k across
    (arXiv:1801.01401, eq. 4). The variance is the two-sample jackknife's: every image is left out
    once, and both sets' spreads of leave-one-out values are added. Where both sets come from one
    distribution the statistic is degenerate, and this is up to twice its variance.

    Args:
      features, reference: the two sets; exchanging them changes nothing.
      reference_row_sums: `kernel_row_sums(reference)`, where it is at hand already.
    """
    for name, images in (("features", features), ("reference", reference)):
        if len(images) < 3:
            raise ValueError(f"{name}: {len(images)} rows; the kernel distance needs at least 3")
    n, m = len(features), len(reference)
    within_x = kernel_row_sums(features)
    within_y = kernel_row_sums(reference) if reference_row_sums is None else reference_row_sums
    across_x, across_y = np.zeros(n), np.zeros(m)
    for rows in _blocks(n):
        block = polynomial_kernel(features[rows], reference)
        across_x[rows] = block.sum(axis=1)
        across_y += block.sum(axis=0)
    sum_x, sum_y, sum_xy = within_x.sum(), within_y.sum(), across_x.sum()
    mean_x, mean_y = sum_x / (n * (n - 1)), sum_y / (m * (m - 1))
    mean_xy = sum_xy / (n * m)

    without_x = (sum_x - 2 * within_x) / ((n - 1) * (n - 2)) - 2 * (sum_xy - across_x) / (
        (n - 1) * m
    )
    without_y = (sum_y - 2 * within_y) / ((m - 1) * (m - 2)) - 2 * (sum_xy - across_y) / (
        n * (m - 1)
    )
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return KernelDistance(float(mean_x + mean_y - 2 * mean_xy), float(variance))


def kid(
    features: Float[np.ndarray, "N D"],
    reference: Float[np.ndarray, "M D"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> SubsetMean:
    """Kernel distance as torch-fidelity reports it: the mean over random subsets of both sets.

    The subsets are those that torch-fidelity draws from the same arrays. Which images they hold
    depends on the order of the images, so in another order the number differs by chance;
    `kernel_distance` is the same for every order, and has less variance.

    Args:
      features, reference: Inception's, for the published metric.
      subsets: how many are drawn.
      subset_size: images in each, without repetition, of either set.
      seed: of NumPy's legacy generator.

    Raises:
      ValueError: a set is smaller than a subset.
    """
    for name, images in (("features", features), ("reference", reference)):
        if len(images) < subset_size:
            raise ValueError(
                f"subset_size={subset_size}: {name} has only {len(images)} images, and subsets "
                "are drawn without repetition"
            )
    if subset_size < 2 or subsets < 1:
        raise ValueError(f"subsets={subsets}, subset_size={subset_size}: at least 1 of 2 images")
    rng = np.random.RandomState(seed)  # its draws are part of the metric
    values = [
        _unbiased(
            *(x[rng.choice(len(x), subset_size, replace=False)] for x in (features, reference))
        )
        for _ in range(subsets)
    ]
    return SubsetMean(float(np.mean(values)), float(np.std(values)))


def _unbiased(x: Float[np.ndarray, "n D"], y: Float[np.ndarray, "n D"]) -> float:
    """Squared MMD of two sets of one size (arXiv:1801.01401, eq. 4)."""
    count = len(x)
    within = kernel_row_sums(x).sum() + kernel_row_sums(y).sum()
    return within / (count * (count - 1)) - 2 * polynomial_kernel(x, y).mean()


def kernel_distance_resampled(
    features: Float[np.ndarray, "N D"],
    reference: Float[np.ndarray, "M D"],
    counts: Int[np.ndarray, "R N"],
) -> Float[np.ndarray, "R"]:
    """Squared MMD of each resample of `features` to a fixed reference, up to a constant.

    Pairs of one image with itself are left out also where it was drawn twice, so a resample is
    not nearer to itself than the sample is. The reference's own term, the same for every
    resample, is left out: only deviations between resamples mean anything.
    """
    weights = counts.astype(np.float64)
    within, across = np.zeros(len(counts)), np.zeros(len(counts))
    for rows in _blocks(len(features)):
        block = polynomial_kernel(features[rows], features)
        _clear_diagonal(block, rows)
        within += np.sum((weights[:, rows] @ block) * weights, axis=1)
        across += weights[:, rows] @ polynomial_kernel(features[rows], reference).mean(axis=1)
    total = weights.sum(axis=1)
    return within / (total**2 - np.sum(weights**2, axis=1)) - 2 * across / total


def _clear_diagonal(block: np.ndarray, rows: slice) -> None:
    index = np.arange(rows.stop - rows.start)
    block[index, index + rows.start] = 0.0


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
