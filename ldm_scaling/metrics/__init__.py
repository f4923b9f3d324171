"""Distances between sets of image features, and what they are worth.

Pure functions of feature arrays: they know neither networks nor files. Every score of a set comes
with a way to resample it, because at the sample sizes of a small study the interval is half of the
result. Names of reported metrics carry their feature network ("fd_lite0"), never "FID".
"""

from ldm_scaling.metrics.alignment import Alignment, Calibration, calibrate, fit_alignment
from ldm_scaling.metrics.bootstrap import interval, resampled_means, resampling_counts
from ldm_scaling.metrics.frechet import (
    FeatureStatistics,
    Gaussian,
    frechet_distance,
    frechet_from_features,
    frechet_resampled,
)
from ldm_scaling.metrics.kernel_distance import (
    KernelDistance,
    kernel_distance,
    kernel_distance_resampled,
    kernel_row_sums,
    polynomial_kernel,
)
from ldm_scaling.metrics.precision_recall import (
    PrecisionRecall,
    neighbour_radii,
    precision_recall,
    within_manifold,
)

__all__ = [
    "Alignment",
    "Calibration",
    "FeatureStatistics",
    "Gaussian",
    "KernelDistance",
    "PrecisionRecall",
    "calibrate",
    "fit_alignment",
    "frechet_distance",
    "frechet_from_features",
    "frechet_resampled",
    "interval",
    "kernel_distance",
    "kernel_distance_resampled",
    "kernel_row_sums",
    "neighbour_radii",
    "polynomial_kernel",
    "precision_recall",
    "resampled_means",
    "resampling_counts",
    "within_manifold",
]
