"""The record of an evaluation: right numbers under right names, and what could not be measured."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldm_scaling import metrics
from ldm_scaling.evaluation.distances import distance_record
from ldm_scaling.evaluation.features import FeatureNetwork, Inception
from ldm_scaling.records import read_records
from tests.train.processes import Processes

WHERE = {"samples": "drawn", "reference": "real"}
RNG = np.random.default_rng(0)
WEIGHTS = {
    "fc": {"kernel": RNG.normal(size=(12, 7)).astype(np.float32)},
    "projection": RNG.normal(size=(48, 12)).astype(np.float32) / 255,
}


class Projection(FeatureNetwork):
    """Twelve numbers of 4 x 4 pixels."""

    def __init__(self):
        def network(params, images):
            flat = images.reshape(len(images), -1).astype(jnp.float32)
            return flat @ params["projection"]

        FeatureNetwork.__init__(self, "projection", 12, network, WEIGHTS, batch_size=8, mesh=None)


class Stand(Projection, Inception):
    """The same in Inception's place."""

    _fit = FeatureNetwork._fit

    def unbiased_logits(self, features):
        return features @ WEIGHTS["fc"]["kernel"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    arrays = {}
    for name, count, low in (("drawn", 30, 0), ("real", 40, 60)):
        arrays[name] = RNG.integers(low, 256, (count, 4, 4, 3), dtype=np.uint8)
        (root / name).mkdir()
        for i, image in enumerate(arrays[name]):
            Image.fromarray(image).save(root / name / f"{i:03d}.png")
    settings = {"weights_hash": "abc", "seed": 3, "steps": 10, "ldm_scaling": "1"}
    (root / "drawn" / "generation.json").write_text(json.dumps(settings))
    return root, arrays


def features(images):
    return images.reshape(len(images), -1).astype(np.float32) @ WEIGHTS["projection"]


ALL = ("fid", "kid", "is", "prdc")


def test_numbers_are_those_of_the_metrics(folders):
    root, arrays = folders
    record = distance_record(Stand(), f"{root}/drawn", f"{root}/real", ALL)
    x, y = features(arrays["drawn"]), features(arrays["real"])
    expected = {
        "fid": metrics.frechet_from_features(x, y),
        "kid": metrics.kid(x, y, subset_size=30).mean,
        "inception_score": metrics.inception_score(x @ WEIGHTS["fc"]["kernel"]).mean,
        "precision": metrics.precision_recall(x, y, 3).precision,
        "coverage": metrics.density_coverage(x, y, 5).coverage,
    }
    for name, value in expected.items():
        assert record.metrics[name].value == pytest.approx(value, rel=1e-4), name
    assert (record.num_samples, record.seed, record.weights_hash) == (30, 3, "abc")
    assert record.point == {"samples": f"{root}/drawn", "steps": 10}
    assert record.protocol["left_out"] == []


def test_statistics_take_the_place_of_images_and_are_the_same(folders, tmp_path):
    root, _ = folders
    save = tmp_path / "real.npz"
    once = distance_record(Stand(), f"{root}/drawn", f"{root}/real", ["fid"], save_reference=save)
    again = distance_record(Stand(), f"{root}/drawn", str(save), ALL)
    assert again.metrics["fid"].value == pytest.approx(once.metrics["fid"].value, rel=1e-6)
    assert sorted(again.metrics) == ["fid", "inception_score"]
    assert again.protocol["left_out"] == ["kid", "prdc"]


def test_only_published_weights_give_the_fields_names(folders):
    root, _ = folders
    plain = distance_record(Projection(), f"{root}/drawn", f"{root}/real", ALL)
    assert sorted(plain.metrics) == [
        "coverage_projection", "density_projection", "fd_projection", "kd_projection",
        "precision_projection", "recall_projection",
    ]  # fmt: skip
    assert plain.protocol["left_out"] == ["is"]
    own = distance_record(Stand(), f"{root}/drawn", f"{root}/real", ["fid"], published=False)
    assert list(own.metrics) == ["fd_projection"]
    assert own.hash != dataclasses.replace(own, protocol={}).hash


def test_an_interval_where_asked(folders):
    root, _ = folders
    record = distance_record(Stand(), f"{root}/drawn", f"{root}/real", ["fid"], resamples=50)
    fid = record.metrics["fid"]
    assert 0 <= fid.low < fid.value < fid.high


def test_refusals(folders, tmp_path):
    root, _ = folders
    with pytest.raises(ValueError, match="did you mean 'fid'"):
        distance_record(Stand(), f"{root}/drawn", f"{root}/real", ["fidd"])
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="statistics of 3 features; projection has 12"):
        distance_record(Stand(), f"{root}/drawn", str(tmp_path / "other.npz"))
    with pytest.raises(ValueError, match="statistics; give the images"):
        distance_record(Stand(), str(tmp_path / "other.npz"), f"{root}/real")


def test_images_of_mixed_sizes_are_refused_where_the_network_does_not_scale(folders, tmp_path):
    root, _ = folders
    for i, shape in enumerate([(4, 4), (4, 5)]):
        image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    with pytest.raises(
        ValueError, match=r"images of \[\(4, 4, 3\), \(4, 5, 3\)\]: projection takes"
    ):
        distance_record(Projection(), str(tmp_path), f"{root}/real", ["fid"])


def test_fewer_images_than_features_are_told_and_measured(folders, tmp_path):
    """The distance is right for so few; one image has none."""
    root, arrays = folders
    few = tmp_path / "few.npz"
    np.savez(few, arrays["drawn"][:7])
    with pytest.warns(UserWarning, match="samples: 7 images for 12-d features; the covariance is"):
        record = distance_record(Stand(), str(few), f"{root}/real", ["fid", "kid"])
    mu, sigma = features(arrays["drawn"][:7]).mean(0), np.cov(features(arrays["drawn"][:7]).T)
    real = features(arrays["real"])
    expected = metrics.frechet_distance(mu, sigma, real.mean(0), np.cov(real.T))
    assert record.metrics["fid"].value == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(record.metrics["kid"].value)
    with pytest.warns(UserWarning, match=r"few\.npz: 7 images for 12-d features"):
        distance_record(Stand(), f"{root}/drawn", str(few), ["fid"])
    np.savez(few, arrays["drawn"][:1])
    with (
        pytest.warns(UserWarning, match="samples: 1 images"),
        pytest.raises(ValueError, match="1 rows; a covariance needs at least 2 images"),
    ):
        distance_record(Stand(), str(few), f"{root}/real", ["fid"])


def test_features_that_are_no_numbers_give_no_score(folders, monkeypatch):
    root, _ = folders
    projection = WEIGHTS["projection"].copy()
    projection[3, 4] = np.nan
    monkeypatch.setitem(WEIGHTS, "projection", projection)
    with pytest.raises(ValueError, match=r"NaN or Inf for .* its weights are damaged"):
        distance_record(Stand(), f"{root}/drawn", f"{root}/real", ALL)


COMMAND = Path(__file__).parents[2] / "launch" / "eval_fid.py"


def flags(folders, output, **others):
    sets = {name: f"{folders[0]}/{folder}" for name, folder in WHERE.items()}
    small = {"features": "lite0", "size": 32, "metrics": "fid,kid", "batch_size": 8}
    every = {**sets, **small, "output": output / "scores.jsonl", **others}
    return [f"--{name}={value}" for name, value in every.items()]


@pytest.fixture(scope="module")
def scored(folders, tmp_path_factory):
    """What the command leaves in a folder, and the record in it; on one device."""
    output = tmp_path_factory.mktemp("scored")
    save = {"save_reference": output / "real.npz"}
    command = [sys.executable, COMMAND, *flags(folders, output, **save)]
    alone = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    assert f"30 images; a record was added to {output}/scores.jsonl" in done.stdout
    [record] = read_records(output / "scores.jsonl")
    return output, record


def test_the_command_adds_a_record(folders, scored):
    output, record = scored
    assert list(record.metrics) == ["fd_lite0_32", "kd_lite0_32"]
    assert record.protocol["reference"] == f"{folders[0]}/real"
    assert (record.num_samples, record.seed, record.weights_hash) == (30, 3, "abc")
    assert record.metrics["fd_lite0_32"].value > 1
    with np.load(output / "real.npz") as file:
        assert (file["count"], file["sigma"].shape) == (40, (1280, 1280))


def test_processes_share_the_images_and_agree_with_one(folders, scored, tmp_path):
    """Three of them: the shares of 40 images are not of one size."""
    save = {"save_reference": tmp_path / "real.npz"}
    command = [COMMAND, *flags(folders, tmp_path, **save)]
    with Processes(tmp_path / "logs", 3, 1, {}, command=command) as processes:
        processes.finish()
        said = [processes.log(index) for index in range(3)]
    assert ["14/14" in log for log in said] == [True, False, False]  # a third each; one bar
    [found], expected = read_records(tmp_path / "scores.jsonl"), scored[1]
    assert found.protocol == expected.protocol
    for name, metric in expected.metrics.items():
        assert found.metrics[name].value == pytest.approx(metric.value, rel=1e-6, abs=1e-7)
    one, other = (np.load(folder / "real.npz") for folder in (scored[0], tmp_path))
    np.testing.assert_allclose(other["sigma"], one["sigma"], atol=1e-5 * one["sigma"].max())


def test_the_command_says_where_the_weights_of_fid_are(folders, tmp_path):
    command = [sys.executable, COMMAND, *flags(folders, tmp_path, features="inception")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("eval_fid: weights: FID needs Inception's published weights; get")
