"""Moments of features as they travel: between processes, and in files that others read."""

import os
from pathlib import Path

import jax
import numpy as np

from ldm_scaling.evaluation.files import open_npz, write_atomically
from ldm_scaling.hosts.agreement import wait_for_all
from ldm_scaling.metrics import FeatureStatistics, Gaussian
from ldm_scaling.metrics.frechet import warn_of_low_rank


def merged_over_processes(statistics: FeatureStatistics) -> FeatureStatistics:
    """Statistics of the images of all processes together, on each of them; all have to call it.

    The processes' parts are told one after the other, so that only one is held beside the sum, and
    are merged in the same order everywhere: the result is the same to the last bit. A process
    without images brings `FeatureStatistics.empty`.
    """
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return statistics
    wait_for_all("statistics")
    size = len(statistics.mean)
    own = np.concatenate([[statistics.count], statistics.mean, statistics.scatter.ravel()])
    total = FeatureStatistics.empty(size)
    for process in range(jax.process_count()):
        # As bits: JAX would round float64 to float32 on the way.
        told = multihost_utils.broadcast_one_to_all(
            own.view(np.uint32), is_source=jax.process_index() == process
        )
        numbers = np.asarray(told).view(np.float64)
        mean, scatter = numbers[1 : size + 1], numbers[size + 1 :].reshape(size, size)
        total = total.merge(FeatureStatistics(int(numbers[0]), mean, scatter))
    return total


def save_statistics(path: str | os.PathLike[str], statistics: FeatureStatistics) -> None:
    """Writes `mu` [D] and `sigma` [D, D] (.npz), as pytorch-fid and clean-fid do, and the count."""
    write_atomically(
        Path(path),
        lambda file: np.savez_compressed(
            file,
            mu=statistics.mean,
            sigma=statistics.covariance,
            count=np.int64(statistics.count),
        ),
    )


def load_gaussian(path: str | os.PathLike[str]) -> Gaussian:
    """The Gaussian in an .npz file of ours, pytorch-fid, clean-fid or the original FID.

    Warns where the file says that it is of no more images than features; only ours do.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it holds no `mu` [D] and `sigma` [D, D], or no covariance.
    """
    with open_npz(path) as file:
        arrays = {name: file[name] for name in ("mu", "sigma", "count") if name in file}
    shapes = {name: array.shape for name, array in arrays.items()}
    mean, covariance = arrays.get("mu"), arrays.get("sigma")
    if mean is None or covariance is None or covariance.shape != mean.shape * 2 or mean.ndim != 1:
        raise ValueError(f"{path}: holds {shapes}, not mu [D] and sigma [D, D]")
    if "count" in arrays:
        warn_of_low_rank(str(path), int(arrays["count"]), len(mean))
    return Gaussian.from_moments(mean, covariance)
