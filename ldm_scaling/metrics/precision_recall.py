"""Precision and recall of a generative model by nearest neighbours (arXiv:1904.06991).

A set's manifold is the union of balls around its features, each as wide as the distance to its
k-th nearest neighbour. Precision is the share of generated images inside the real manifold,
recall the share of real images inside the generated one. Density and coverage (arXiv:2002.09797)
ask the real balls only, and so are not misled by a few generated images far from all others.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

_BLOCK = 1024  # rows of the distance matrix held at a time


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1], and the indicators that they are means of (for intervals)."""

    precision: float
    recall: float
    generated_inside: Bool[np.ndarray, "N"]
    reference_inside: Bool[np.ndarray, "M"]


class DensityCoverage(NamedTuple):
    """Density is 1 where generated images lie as real ones do, and may exceed it; coverage <= 1."""

    density: float
    coverage: float


def neighbour_radii(features: Float[np.ndarray, "N D"], k: int = 3) -> Float[np.ndarray, "N"]:
    """Squared distance of every image to its k-th nearest other image."""
    if not 1 <= k < len(features):
        raise ValueError(
            f"k={k}: a radius needs 1 <= k < number of images, which is {len(features)}"
        )
    radii = [
        # The image itself is at distance zero and comes first.
        np.partition(block, k, axis=1)[:, k]
        for block in _squared_distances(features, features)
    ]
    return np.concatenate(radii)


def within_manifold(
    queries: Float[np.ndarray, "N D"],
    features: Float[np.ndarray, "M D"],
    radii: Float[np.ndarray, "M"],
) -> Bool[np.ndarray, "N"]:
    """Whether each query lies in a ball around any of `features` (squared radii)."""
    return np.concatenate(
        [(block <= radii).any(axis=1) for block in _squared_distances(queries, features)]
    )


def precision_recall(
    features: Float[np.ndarray, "N D"],
    reference: Float[np.ndarray, "M D"],
    k: int = 3,
    reference_radii: Float[np.ndarray, "M"] | None = None,
) -> PrecisionRecall:
    """Improved precision and recall (arXiv:1904.06991, eq. 1 and 2).

    Args:
      features: generated images.
      reference: real images. Both shares depend on N, M: compare equal counts only.
      k: neighbour that sets the radius; the paper uses 3.
      reference_radii: `neighbour_radii(reference, k)`, where it is at hand already.
    """
    if reference_radii is None:
        reference_radii = neighbour_radii(reference, k)
    generated_inside = within_manifold(features, reference, reference_radii)
    reference_inside = within_manifold(reference, features, neighbour_radii(features, k))
    return PrecisionRecall(
        float(generated_inside.mean()),
        float(reference_inside.mean()),
        generated_inside,
        reference_inside,
    )


def density_coverage(
    features: Float[np.ndarray, "N D"],
    reference: Float[np.ndarray, "M D"],
    k: int = 5,
    reference_radii: Float[np.ndarray, "M"] | None = None,
) -> DensityCoverage:
    """In how many real balls a generated image lies, and how many real balls have one in them.

    Sources: arXiv:2002.09797, eq. 3 and 4. Balls are open here, as in the paper's code: equal sets
    have density 1. (Those of `precision_recall` are closed.)

    Args:
      features: generated images.
      reference: real images.
      k: neighbour that sets the radius; the paper uses 5.
      reference_radii: `neighbour_radii(reference, k)`, where it is at hand already.
    """
    if reference_radii is None:
        reference_radii = neighbour_radii(reference, k)
    inside, start = [], 0
    for block in _squared_distances(reference, features):
        radii = reference_radii[start : start + len(block), None]
        inside.append(np.sum(block < radii, axis=1))
        start += len(block)
    counts = np.concatenate(inside)
    return DensityCoverage(float(counts.sum() / (k * len(features))), float((counts > 0).mean()))


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of rows of |x - y|^2, in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    squares = np.sum(y**2, axis=1)
    for start in range(0, len(x), _BLOCK):
        rows = x[start : start + _BLOCK]
        products = rows @ y.T
        yield np.maximum(np.sum(rows**2, axis=1)[:, None] + squares[None] - 2 * products, 0.0)
