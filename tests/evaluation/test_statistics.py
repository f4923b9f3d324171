"""Moments of features in files that others read and write, and between processes."""

import hashlib

import numpy as np
import pytest

from ldm_scaling import metrics
from ldm_scaling.evaluation import load_gaussian, merged_over_processes, save_statistics
from tests.train.processes import Processes


def features(count=20, size=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + 1


def test_files_hold_what_pytorch_fid_computes_and_keep_the_distance(tmp_path):
    ours, other = features(), features(seed=1)
    save_statistics(tmp_path / "ours.npz", metrics.FeatureStatistics.of(ours))
    with np.load(tmp_path / "ours.npz") as file:
        np.testing.assert_allclose(file["mu"], np.mean(ours, axis=0), rtol=1e-12)
        np.testing.assert_allclose(file["sigma"], np.cov(ours, rowvar=False), rtol=1e-12)
    # As pytorch-fid's fid_score.py writes them, whose arrays are all it reads.
    mu, sigma = np.mean(other, axis=0), np.cov(other, rowvar=False)
    np.savez_compressed(tmp_path / "theirs.npz", mu=mu, sigma=sigma)
    found = load_gaussian(tmp_path / "ours.npz").frechet(load_gaussian(tmp_path / "theirs.npz"))
    assert found == pytest.approx(metrics.frechet_from_features(ours, other), rel=1e-9)


def test_files_in_float32_are_no_mistake(tmp_path):
    """The original FID's published statistics are."""
    rng = np.random.default_rng(2)
    few = (rng.normal(size=(30, 60)) * np.geomspace(1, 1e-3, 60)).astype(np.float32)
    mu, sigma = few.mean(axis=0), np.cov(few, rowvar=False).astype(np.float32)
    np.savez(tmp_path / "single.npz", mu=mu, sigma=sigma)
    gaussian = load_gaussian(tmp_path / "single.npz")
    assert gaussian.frechet(metrics.Gaussian.from_features(few)) == pytest.approx(0, abs=1e-4)


def test_few_images_and_other_contents_are_told(tmp_path):
    save_statistics(tmp_path / "few.npz", metrics.FeatureStatistics.of(features(count=5)))
    with pytest.warns(UserWarning, match=r"few\.npz: 5 images for 6-d features"):
        load_gaussian(tmp_path / "few.npz")
    for arrays in ({"mu": np.ones(3)}, {"mu": np.ones(3), "sigma": np.ones((3, 4))}, {}):
        np.savez(tmp_path / "other.npz", **arrays)
        with pytest.raises(ValueError, match=r"other\.npz: holds \{.*not mu \[D\] and sigma"):
            load_gaussian(tmp_path / "other.npz")
    np.savez(tmp_path / "nan.npz", mu=np.ones(3), sigma=np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="mean or covariance holds NaN or Inf"):
        load_gaussian(tmp_path / "nan.npz")
    with pytest.raises(FileNotFoundError):
        load_gaussian(tmp_path / "nowhere.npz")


def test_one_process_has_nothing_to_merge():
    own = metrics.FeatureStatistics.of(features())
    assert merged_over_processes(own) is own


WORKER = """
import hashlib, sys
import jax, numpy as np
coordinator, count, index = (argument.split("=")[1] for argument in sys.argv[1:4])
jax.distributed.initialize(coordinator, int(count), int(index))
from ldm_scaling.evaluation import merged_over_processes
from ldm_scaling.metrics import FeatureStatistics
rng = np.random.default_rng(0)
rows = rng.normal(size=(20, 6)) @ rng.normal(size=(6, 6)) + 1
own = FeatureStatistics.empty(6)
if index != "2":
    own = own.update([rows[:13], rows[13:]][int(index)])
total = merged_over_processes(own)
print(hashlib.sha256(total.mean.tobytes() + total.scatter.tobytes()).hexdigest(), total.count)
"""


def test_processes_agree_to_the_last_bit(tmp_path):
    """Three processes with 13, 7 and no images: the same float64 as merged in one."""
    rows = features()
    of = metrics.FeatureStatistics.of
    merged = of(rows[:13]).merge(of(rows[13:]))
    expected = hashlib.sha256(merged.mean.tobytes() + merged.scatter.tobytes()).hexdigest()
    (tmp_path / "worker.py").write_text(WORKER)
    command = [str(tmp_path / "worker.py")]
    with Processes(tmp_path / "logs", 3, 1, {}, command=command) as processes:
        processes.finish()
        for index in range(3):
            processes.wait_for(index, f"{expected} 20")
