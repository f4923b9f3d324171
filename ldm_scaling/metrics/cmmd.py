"""CMMD: squared MMD of CLIP embeddings with a Gaussian kernel (arXiv:2401.09603).

It assumes no normal distribution and settles with few images. Published numbers are those of
CLIP ViT-L/14 at 336 pixels; where the embeddings come from is not this room's business.
"""

import numpy as np
from jaxtyping import Float

SIGMA = 10.0  # section 4, as in google-research's cmmd/distance.py
SCALE = 1000.0  # "to make the metric more readable"
_BLOCK = 1024  # rows of the kernel matrix held at a time


def cmmd(embeddings: Float[np.ndarray, "N D"], reference: Float[np.ndarray, "M D"]) -> float:
    """1000 * squared MMD with k(x, y) = exp(-|x - y|^2 / (2 * 10^2)), in float64; >= 0.

    The biased estimate, pairs of an image with itself included, as published: it is zero for equal
    sets, and about 1000 (1 - E[k]) (1 / N + 1 / M) for two sets from one distribution.

    Args:
      embeddings: CLIP's, of generated images; brought to unit length, as the published ones are.
      reference: of real images.
    """
    x, y = _unit(embeddings), _unit(reference)
    return SCALE * max(_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y), 0.0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
    """Of unit vectors, for which |x - y|^2 = 2 - 2 x . y."""
    total = 0.0
    for start in range(0, len(x), _BLOCK):
        total += np.exp((x[start : start + _BLOCK] @ y.T - 1) / SIGMA**2).sum()
    return total / (len(x) * len(y))
