"""How well an image fits its caption, measured without a network trained for that.

There is no CLIP at this scale. A ridge regression maps image features to the sentence embedding
of the caption; an image's score is the cosine between its mapped features and the embedding of
the caption it was made for, both less the mean embedding of the fitted captions (without which
any two captions look alike). What such a score is worth is measured, on captions and images that
the regression has not seen: `calibrate`. It stands in every report beside the score.
"""

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A fitted map from image features [D] to caption embeddings [E].

    Attributes:
      feature_mean: [D].
      feature_scale: standard deviation of a feature, averaged over all; the unit of the features.
      weights: [D, E].
      caption_mean: [E].
    """

    feature_mean: Float[np.ndarray, "D"]
    feature_scale: float
    weights: Float[np.ndarray, "D E"]
    caption_mean: Float[np.ndarray, "E"]

    def project(self, features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N E"]:
        """Unit vectors in the space of centred caption embeddings."""
        scaled = (np.asarray(features, np.float64) - self.feature_mean) / self.feature_scale
        return _unit(scaled @ self.weights)

    def cosines(
        self, features: Float[np.ndarray, "N D"], captions: Float[np.ndarray, "M E"]
    ) -> Float[np.ndarray, "N M"]:
        """Cosine of every image with every caption, in [-1, 1]."""
        return self.project(features) @ _unit(captions - self.caption_mean).T

    def scores(
        self, features: Float[np.ndarray, "N D"], captions: Float[np.ndarray, "N E"]
    ) -> Float[np.ndarray, "N"]:
        """Cosine of every image with its own caption, in [-1, 1]."""
        return np.sum(self.project(features) * _unit(captions - self.caption_mean), axis=1)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What the score says about real images and captions it was not fitted to.

    Attributes:
      matched: mean cosine of real images with their own captions.
      mismatched: mean cosine of real images with all others' captions.
      top1: share of images whose own caption is the nearest of all.
      ranking: chance that an image is nearer to its own caption than to another (0.5: worthless).
      count: images, so that chance for `top1` is 1 / count.
    """

    matched: float
    mismatched: float
    top1: float
    ranking: float
    count: int


def fit_alignment(
    features: Float[np.ndarray, "N D"], captions: Float[np.ndarray, "N E"], ridge: float = 0.3
) -> Alignment:
    """Least squares from features to caption embeddings, with an L2 penalty.

    Args:
      features: image features.
      captions: embeddings of the images' captions.
      ridge: penalty, in units of the mean eigenvalue of the features' Gram matrix.
    """
    if not ridge > 0:
        raise ValueError(f"ridge={ridge}: the penalty must be positive")
    features = np.asarray(features, np.float64)
    feature_mean = features.mean(axis=0)
    deviations = features - feature_mean
    scale = float(np.sqrt(np.mean(deviations**2)))
    if not scale > 0:
        raise ValueError("features: all rows are equal or not finite; nothing can be fitted")
    deviations /= scale
    caption_mean = np.asarray(captions, np.float64).mean(axis=0)
    gram = deviations.T @ deviations
    penalty = ridge * np.trace(gram) / len(gram)
    gram[np.diag_indices_from(gram)] += penalty
    weights = np.linalg.solve(gram, deviations.T @ (captions - caption_mean))
    return Alignment(feature_mean, scale, weights, caption_mean)


def calibrate(
    alignment: Alignment, features: Float[np.ndarray, "N D"], captions: Float[np.ndarray, "N E"]
) -> Calibration:
    """Measures `alignment` on images and captions that it should not have been fitted to, N >= 2.

    Captions that are equal word for word count as matched for each other's images.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"features: {count} rows; a calibration needs at least 2 images")
    cosines = alignment.cosines(features, captions)
    _, same = np.unique(captions, axis=0, return_inverse=True)
    matching = same.reshape(-1)[:, None] == same.reshape(-1)[None, :]
    own = np.diagonal(cosines)
    others = ~matching
    nearest = np.argmax(cosines, axis=1)
    return Calibration(
        matched=float(own.mean()),
        mismatched=float(cosines[others].mean()),
        top1=float(matching[np.arange(count), nearest].mean()),
        ranking=float((own[:, None] > cosines)[others].mean()),
        count=count,
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)
