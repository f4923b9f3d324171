"""Inception score: how sure a classifier is of every image, and how little of all (1606.03498)."""

import itertools

import numpy as np
from jaxtyping import Float

from ldm_scaling.metrics.kernel_distance import SubsetMean


def inception_score(
    logits: Float[np.ndarray, "N K"],
    *,
    splits: int = 10,
    shuffle: bool = True,
    seed: int = 2020,
) -> SubsetMean:
    """exp of the mean divergence of p(class | image) from p(class), by splits, as torch-fidelity.

    p(class) is the split's own mean, so the score grows with the number of images; and the split
    that an image falls into depends on the order of the images. Compare equal counts only.

    Args:
      logits: `unbiased_logits` of Inception, for the published metric.
      splits: parts that are scored by themselves.
      shuffle: whether images are shuffled first, so that classes spread over the splits.
      seed: of NumPy's legacy generator, which shuffles.

    Returns:
      Mean and standard deviation over the splits, between 1 and K.

    Raises:
      ValueError: there are fewer images than splits.
    """
    count = len(logits)
    if not 1 <= splits <= count:
        raise ValueError(f"splits={splits}: at least 1, and no more than the {count} images")
    if shuffle:
        rng = np.random.RandomState(seed)  # its draws are part of the metric
        logits = logits[rng.permutation(count)]
    log_p = _log_softmax(np.asarray(logits, np.float64))
    bounds = [i * count // splits for i in range(splits + 1)]
    scores = [_score(log_p[a:b]) for a, b in itertools.pairwise(bounds)]
    return SubsetMean(float(np.mean(scores)), float(np.std(scores)))


def _score(log_p: np.ndarray) -> float:
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    seen = mean > 0  # a class that underflows in all images adds nothing
    divergence = np.sum(p[:, seen] * (log_p[:, seen] - np.log(mean[seen])), axis=1)
    return float(np.exp(divergence.mean()))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
