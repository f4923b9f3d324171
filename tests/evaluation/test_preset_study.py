"""A study under a preset: the same numbers as the two binaries, gone on with at the next image."""

import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ldm_scaling.checkpoint.published import load_inception
from ldm_scaling.evaluation import Generator, Model, folder, generate, planned, run, study_records
from ldm_scaling.evaluation.clip_score import ClipEmbedder, clip_record
from ldm_scaling.evaluation.distances import distance_record
from ldm_scaling.sharding import make_mesh
from tests.evaluation.conftest import HashedText, Pixels
from tests.evaluation.test_clip_score import write_model

NETWORK = "inception_legacy"


@pytest.fixture(scope="module")
def parts(coco, goldens, tmp_path_factory):
    """Weights of Inception that nobody reads, and the folder of a small CLIP."""
    root = tmp_path_factory.mktemp("parts")
    (root / "inception.pth").write_bytes(b"weights")
    write_model(root / "clip", goldens)
    return root


@pytest.fixture(scope="module", autouse=True)
def _small_networks():
    module = "ldm_scaling.evaluation.preset_protocol"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            f"{module}.load_inception",
            lambda path, published=True: {} if Path(path).is_file() else load_inception(path),
        )
        patch.setattr(f"{module}.Inception", lambda params, mode, batch, mesh: Pixels(mode))
        patch.setattr("ldm_scaling.evaluation.model._text_encoder", lambda *_: HashedText())
        yield


@pytest.fixture(scope="module")
def config(coco, models, parts):
    return ConfigDict(
        {
            "models": (str(models / "early"), str(models / "late")),
            "seeds": (0,),
            "grids": {
                "ddim": {"steps": (2,), "guidance": (1.0, 3.0)},
                "dpmpp_2m": {"steps": (3,), "guidance": (2.0,)},
            },
            "protocol": {
                "preset": "paper",
                "captions": f"{coco}/annotations/captions_val2014.json",
                "reference": f"{coco}/val2014",
                "inception": f"{parts}/inception.pth",
                "clip": f"{parts}/clip",
                "num_samples": 11,
                "published": False,
                "resamples": 20,
                "keep_images": True,
            },
            "batch_size": 8,
            "mesh": {"replica": -1, "fsdp": 1, "tensor": 1},
        }
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    generate.drawing_program.cache_clear()
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, run(config, workdir)


def changed(config, **protocol):
    copy = ConfigDict(config.to_dict())
    copy.protocol.update(protocol)
    return copy


def numbers(records):
    return {r.hash: {name: m.value for name, m in r.metrics.items()} for r in records}


def test_a_point_scores_as_the_binaries_do(finished, config, coco, parts):
    workdir, records = finished
    assert len(records) == 6
    assert {r.hash for r in records} == {record.hash for _, record in planned(config)}
    embedder = ClipEmbedder.from_folder(parts / "clip")
    for record in records:
        drawn = workdir / "drawn" / record.hash
        apart = distance_record(
            Pixels("legacy"), str(drawn), f"{coco}/val2014", ["fid"], published=False,
            preset="paper", resamples=20,
        )  # fmt: skip
        found = {**apart.metrics, **clip_record(embedder, drawn, resamples=20).metrics}
        assert record.metrics.keys() == found.keys()
        for name, metric in found.items():
            expected = pytest.approx(metric.value, rel=1e-5, abs=1e-5)
            assert record.metrics[name].value == expected, name
        assert record.metrics["clip_cosine"].low < record.metrics["clip_cosine"].high
        assert (record.kind, record.num_samples) == ("samples", 11)
        assert record.protocol["preset"] == "paper"
        assert record.costs["evaluations"] == record.point["steps"] * (
            1 if record.point["guidance"] == 1 else 2
        )
    assert len({record.metrics[f"fd_{NETWORK}"].value for record in records}) == 6


def test_pictures_of_the_first_captions_are_kept(finished):
    workdir, records = finished
    for record in records:
        strip = np.asarray(Image.open(workdir / "samples" / f"{record.hash}.png"))
        assert strip.shape == (8, 8 * 8, 3)
        first = sorted((workdir / "drawn" / record.hash).glob("*.png"))[0]
        np.testing.assert_array_equal(strip[:, :8], np.asarray(Image.open(first)))


def test_one_program_draws_every_point_of_both_models(finished, models):
    mesh = make_mesh(replica=-1, fsdp=1)  # as the study's
    for name in ("early", "late"):
        assert Generator(Model.from_folder(models / name), mesh=mesh)._draw._cache_size() == 1


class Stop(BaseException):
    pass


def test_a_stopped_point_goes_on_with_the_next_image(finished, config, tmp_path, monkeypatch):
    write, written = folder._write, []

    def fail(path, image):
        if len(written) == 14:  # in the second point
            raise Stop
        written.append(path)
        write(path, image)

    monkeypatch.setattr(folder, "_write", fail)
    config = changed(config, keep_images=False)
    with pytest.raises(Stop):
        run(config, tmp_path)
    assert len(study_records(tmp_path)) == 1
    kept = [path for path in written if path.exists()]
    assert len(kept) == 3  # those of the first point went with its record
    monkeypatch.setattr(folder, "_write", write)
    again = []
    monkeypatch.setattr(
        folder, "_write", lambda path, image: (again.append(path), write(path, image))
    )
    records = run(config, tmp_path)
    assert not set(again) & set(kept)
    assert len(again) + 14 == 6 * 11
    assert not list((tmp_path / "drawn").iterdir())
    expected = numbers(finished[1])
    for name, metrics in numbers(records).items():
        assert metrics == pytest.approx(expected[name], rel=1e-4)


def test_real_images_are_looked_at_once(finished, config, coco, tmp_path):
    workdir, _ = finished
    (statistics,) = (workdir / "features").glob("real-paper-*.npz")
    from_file = changed(config, reference=str(statistics))
    (_, one), *_ = planned(config)
    (_, other), *_ = planned(from_file)
    assert one.hash != other.hash
    run(from_file, tmp_path, [0])
    (record,) = study_records(tmp_path)
    assert record.metrics == next(r for r in finished[1] if r.hash == one.hash).metrics


def test_the_place_of_a_file_plays_no_role(config, coco, parts, tmp_path):
    moved = tmp_path / "elsewhere.pth"
    moved.write_bytes(b"weights")
    (_, one), *_ = planned(config)
    described = one.protocol
    assert json.dumps(dict(described))
    assert str(coco) not in json.dumps(dict(described))
    moved.rename(tmp_path / "inception.pth")
    (_, same), *_ = planned(changed(config, inception=str(tmp_path / "inception.pth")))
    assert same.hash == one.hash
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "inception.pth").write_bytes(b"others")
    (_, other), *_ = planned(changed(config, inception=f"{tmp_path}/other/inception.pth"))
    assert other.hash != one.hash


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("preset", "papre", ValueError, "did you mean 'paper'"),
        ("clip", "nowhere", FileNotFoundError, "nowhere: no such folder; get CLIP ViT-L/14"),
        (
            "inception",
            "nowhere.pth",
            FileNotFoundError,
            "no such file; get it from https://.*6726825d",
        ),
        ("captions", "nowhere.json", FileNotFoundError, "captions=nowhere.json: no such file"),
        ("num_samples", 13, ValueError, "has 12 captions to choose, not count=13"),
        ("num_samples", 3, ValueError, "num_samples=3"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(
    config, tmp_path, field, value, error, message
):
    with pytest.raises(error, match=message):
        run(changed(config, **{field: value}), tmp_path)
    assert not list(tmp_path.iterdir())
