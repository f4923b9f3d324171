"""Distances between sets of image features, or single images, and what they are worth.

Pure functions of feature arrays: they know neither networks nor files. Every score of a set comes
with a way to resample it, because at the sample sizes of a small study the interval is half of the
result. Names of reported metrics carry their feature network ("fd_lite0"); only what is computed
from Inception's published weights may be called FID, KID or Inception score.
"""

from ldm_scaling.metrics.alignment import Alignment, Calibration, calibrate, fit_alignment
from ldm_scaling.metrics.bootstrap import interval, resampled_means, resampling_counts
from ldm_scaling.metrics.cmmd import cmmd
from ldm_scaling.metrics.frechet import (
    FeatureStatistics,
    Gaussian,
    frechet_distance,
    frechet_from_features,
    frechet_resampled,
    warn_of_low_rank,
)
from ldm_scaling.metrics.frechet_infinity import FrechetInfinity, frechet_infinity
from ldm_scaling.metrics.inception_score import inception_score
from ldm_scaling.metrics.kernel_distance import (
    KernelDistance,
    SubsetMean,
    kernel_distance,
    kernel_distance_resampled,
    kernel_row_sums,
    kid,
    polynomial_kernel,
)
from ldm_scaling.metrics.lpips import lpips_distance
from ldm_scaling.metrics.precision_recall import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    neighbour_radii,
    precision_recall,
    within_manifold,
)

__all__ = [
    "Alignment",
    "Calibration",
    "DensityCoverage",
    "FeatureStatistics",
    "FrechetInfinity",
    "Gaussian",
    "KernelDistance",
    "PrecisionRecall",
    "SubsetMean",
    "calibrate",
    "cmmd",
    "density_coverage",
    "fit_alignment",
    "frechet_distance",
    "frechet_from_features",
    "frechet_infinity",
    "frechet_resampled",
    "inception_score",
    "interval",
    "kernel_distance",
    "kernel_distance_resampled",
    "kernel_row_sums",
    "kid",
    "lpips_distance",
    "neighbour_radii",
    "polynomial_kernel",
    "precision_recall",
    "resampled_means",
    "resampling_counts",
    "warn_of_low_rank",
    "within_manifold",
]
