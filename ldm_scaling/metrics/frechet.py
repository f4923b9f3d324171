"""Fréchet distance between Gaussians fitted to two sets of features.

d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))      (arXiv:1706.08500, eq. 6)

With factors S = L L^T, the last trace is the sum of the singular values of L1^T L2. This needs no
square root of a matrix that is not symmetric, keeps full precision when S1 and S2 are singular
(fewer images than features), and with fewer images N than features D works on N x N matrices: the
centred features are a factor already.
"""

import dataclasses
import warnings

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Count, mean and scatter of features that were seen in any number of pieces.

    Float64 throughout; pieces merge by Chan, Golub & LeVeque's update (1979), so the result does
    not depend on how the features were cut beyond rounding.

    Attributes:
      count: images seen.
      mean: [D].
      scatter: [D, D], the sum of outer products of deviations from the mean.
    """

    count: int
    mean: Float[np.ndarray, "D"]
    scatter: Float[np.ndarray, "D D"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "N D"]) -> "FeatureStatistics":
        """Statistics of one piece, N >= 1."""
        if len(features) == 0:
            raise ValueError("features: no rows; statistics need at least 1 image")
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    @classmethod
    def empty(cls, size: int) -> "FeatureStatistics":
        """Statistics of no images, with `size` features: where a stream begins."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    def update(self, features: Float[np.ndarray, "N D"]) -> "FeatureStatistics":
        """Statistics of what was seen and `features` together."""
        return self.merge(FeatureStatistics.of(features))

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Statistics of both pieces together."""
        if other.count == 0:
            return self
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        weight = self.count * other.count / count
        scatter = self.scatter + other.scatter + weight * np.outer(delta, delta)
        return FeatureStatistics(count, mean, scatter)

    @property
    def covariance(self) -> Float[np.ndarray, "D D"]:
        """Unbiased covariance (divided by count - 1). Raises ValueError below 2 images."""
        if self.count < 2:
            raise ValueError(f"count={self.count}: a covariance needs at least 2 images")
        return self.scatter / (self.count - 1)

    def gaussian(self) -> "Gaussian":
        """The Gaussian with these moments; warns where there are no more images than features."""
        warn_of_low_rank("statistics", self.count, len(self.mean))
        return Gaussian.from_moments(self.mean, self.covariance)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A Gaussian by its mean and a factor of its covariance, factor @ factor.T.

    Attributes:
      mean: [D] float64.
      factor: [D, R] float64, R the rank (or an upper bound of it).
    """

    mean: Float[np.ndarray, "D"]
    factor: Float[np.ndarray, "D R"]

    @classmethod
    def from_moments(
        cls, mean: Float[np.ndarray, "D"], covariance: Float[np.ndarray, "D D"]
    ) -> "Gaussian":
        """Factors a symmetric positive semi-definite matrix.

        Raises:
          ValueError: for NaN or Inf, and where an eigenvalue is negative beyond rounding.
        """
        # Files of others may hold float32, whose rounding is no sign of a mistake.
        precision = np.finfo(np.result_type(covariance, np.float16)).eps
        covariance = np.asarray(covariance, np.float64)
        if not (np.isfinite(covariance).all() and np.isfinite(mean).all()):
            raise ValueError("mean or covariance holds NaN or Inf; both must be finite")
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        scale = len(values) * max(values[-1], -values[0], 0.0)
        tolerance = scale * np.finfo(np.float64).eps
        if values[0] < -max(1e4 * tolerance, scale * precision):
            raise ValueError(
                f"covariance: smallest eigenvalue {values[0]:.3g}; "
                "a covariance is positive semi-definite"
            )
        kept = values > tolerance
        factor = vectors[:, kept] * np.sqrt(values[kept])
        return cls(np.asarray(mean, np.float64), factor)

    @classmethod
    def from_features(cls, features: Float[np.ndarray, "N D"]) -> "Gaussian":
        """Mean and unbiased covariance of features, N >= 2."""
        count, size = features.shape
        if count < 2:
            raise ValueError(f"features: {count} rows; a covariance needs at least 2 images")
        if count <= size:  # the centred features are the smaller factor
            features = np.asarray(features, np.float64)
            mean = features.mean(axis=0)
            return cls(mean, (features - mean).T / np.sqrt(count - 1))
        statistics = FeatureStatistics.of(features)
        return cls.from_moments(statistics.mean, statistics.covariance)

    def frechet(self, other: "Gaussian") -> float:
        """Squared Fréchet distance, as FID reports it; >= 0."""
        means = np.sum((self.mean - other.mean) ** 2)
        traces = np.sum(self.factor**2) + np.sum(other.factor**2)
        cross = np.linalg.svd(self.factor.T @ other.factor, compute_uv=False).sum()
        return float(max(means + traces - 2 * cross, 0.0))


def frechet_distance(
    mu1: Float[np.ndarray, "D"],
    sigma1: Float[np.ndarray, "D D"],
    mu2: Float[np.ndarray, "D"],
    sigma2: Float[np.ndarray, "D D"],
) -> float:
    """Squared Fréchet distance of two Gaussians (arXiv:1706.08500, eq. 6), in float64.

    Raises ValueError where a covariance is not finite or not positive semi-definite.
    """
    return Gaussian.from_moments(mu1, sigma1).frechet(Gaussian.from_moments(mu2, sigma2))


def frechet_from_features(
    features: Float[np.ndarray, "N D"], reference: Float[np.ndarray, "M D"]
) -> float:
    """Squared Fréchet distance of Gaussians fitted to two sets; warns where one has N <= D."""
    for name, images in (("features", features), ("reference", reference)):
        warn_of_low_rank(name, *images.shape)
    return Gaussian.from_features(features).frechet(Gaussian.from_features(reference))


def warn_of_low_rank(name: str, count: int, size: int) -> None:
    """Warns where `count` images cannot fill a covariance of `size` x `size`: its rank is lower.

    The distance is exact all the same, but it is that of few images, not of their distribution.
    """
    if count <= size:
        warnings.warn(
            f"{name}: {count} images for {size}-d features; the covariance is rank-deficient and "
            "the Fréchet distance biased upwards: compare equal counts only, or prefer the kernel "
            "distance",
            stacklevel=3,
        )


def frechet_resampled(
    features: Float[np.ndarray, "N D"], reference: Gaussian, counts: Int[np.ndarray, "R N"]
) -> Float[np.ndarray, "R"]:
    """Squared Fréchet distance of each resample of `features` to a fixed reference.

    What a resample needs of the images is projected on the reference once; what is left for it is
    the eigenvalues of a matrix as large as the number of its distinct images or the reference's
    rank, whichever is smaller.
    """
    shifted = np.asarray(features, np.float64) - reference.mean
    squares = np.sum(shifted**2, axis=1)
    projected = shifted @ reference.factor
    few = len(projected) <= projected.shape[1]
    seen = projected @ projected.T if few else projected
    constant = np.sum(reference.factor**2)
    distances = []
    for row in counts:
        drawn = np.flatnonzero(row)
        weight, count = row[drawn].astype(np.float64), int(row.sum())
        square = np.sum((weight @ shifted[drawn] / count) ** 2)  # of the mean
        trace = (weight @ squares[drawn] - count * square) / (count - 1)
        gram = _weighted_gram(seen, drawn, weight) if few else _weighted_scatter(seen, row)
        values = np.linalg.eigvalsh(gram / (count - 1))
        cross = np.sqrt(np.clip(values, 0.0, None)).sum()
        distances.append(max(square + trace + constant - 2 * cross, 0.0))
    return np.array(distances)


def _weighted_gram(gram: np.ndarray, drawn: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Products of deviations from the weighted mean, times the roots of both weights."""
    part = gram[np.ix_(drawn, drawn)]
    to_mean = part @ weight / weight.sum()
    centred = part - to_mean[:, None] - to_mean[None] + weight @ to_mean / weight.sum()
    root = np.sqrt(weight)
    return root[:, None] * centred * root


def _weighted_scatter(projected: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Weighted sum of outer products of deviations from the weighted mean."""
    deviations = projected - row @ projected / row.sum()
    return (deviations * row[:, None]).T @ deviations
