import dataclasses
import errno
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ldm_scaling.evaluation import (
    Generator,
    Model,
    TextEncoder,
    bench,
    generate,
    listing,
    planned,
    run,
    study_records,
    sweep,
)
from ldm_scaling.records import Record, append_record, read_records
from ldm_scaling.sharding import make_mesh
from tests.evaluation.conftest import HashedText, ProjectedPixels


@pytest.fixture(autouse=True, scope="module")
def _cheap_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "packaged", classmethod(lambda cls: HashedText()))
        patch.setattr("ldm_scaling.evaluation.protocol.Lite0", ProjectedPixels)
        yield


@pytest.fixture(scope="module")
def config(models, dataset):
    return ConfigDict(
        {
            "models": (str(models / "early"), str(models / "late")),
            "seeds": (0,),
            "grids": {
                "ddim": {"steps": (2, 4), "guidance": (1.0, 3.0)},
                "ddpm": {"steps": (3,), "guidance": (3.0,)},
            },
            "protocol": {
                "dataset": str(dataset),
                "captions": "train",
                "prompts": (),
                "reference": "train",
                "variants": False,
                "captions_seed": 0,
                "num_samples": 10,
                "feature_size": 32,
                "resamples": 20,
            },
            "batch_size": 8,
            "mesh": {"replica": -1, "fsdp": 1, "tensor": 1},
        }
    )


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """Folder and records of a study that ran through."""
    generate.drawing_program.cache_clear()
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, run(config, workdir)


def results(records):
    """Everything but provenance, as text: equal texts are equal to the last bit."""
    return [dataclasses.replace(record, provenance={}).to_json() for record in records]


def test_a_record_holds_setting_metrics_costs_and_origin(undisturbed, config):
    _, records = undisturbed
    samples = [r for r in records if r.kind == "samples"]
    assert len(samples) == 10
    assert {r.hash for r in samples} == {record.hash for _, record in planned(config)}
    for record in samples:
        assert record.point["family"] == "micro"
        assert record.point["spacing"] == "trailing"  # of the model's scheduler config
        assert set(record.metrics) == {
            "fd_lite0",
            "kd_lite0",
            "precision_lite0",
            "recall_lite0",
            "alignment_lite0_minilm",
        }
        for metric in record.metrics.values():
            assert metric.low <= metric.value <= metric.high
        steps, guided = record.point["steps"], record.point["guidance"] != 1
        costs = record.costs
        assert costs["evaluations"] == steps * (2 if guided else 1)
        assert costs["sampling_cost"] == pytest.approx(steps * costs["normalized_cost"])
        assert costs["sampling_cost_guided"] == pytest.approx(
            costs["evaluations"] * costs["normalized_cost"]
        )
        assert 0 < costs["normalized_cost"] < 1  # narrower than the widest of its family
        assert costs["training_flops"] == 1e9
        assert {"versions", "device", "time", "seconds"} <= set(record.provenance)
    assert {r.point["training_steps"] for r in samples} == {100, 200}
    assert {r.kind: r.num_samples for r in records if r.kind != "samples"} == {
        "real_images": 8,
        "alignment_calibration": 8,
    }


def test_pictures_of_the_first_captions_are_kept(undisturbed):
    workdir, records = undisturbed
    for record in records:
        if record.kind == "samples":
            strip = np.asarray(Image.open(workdir / "samples" / f"{record.hash}.png"))
            assert strip.shape == (8, 8 * 8, 3)
            assert len(record.protocol["strip_captions"]) == 8
            assert len({strip[:, i : i + 8].tobytes() for i in range(0, 64, 8)}) == 8


class Stop(BaseException):
    """Stands for Ctrl-C and kill: nothing may catch it."""


def stop_in_append(monkeypatch, count, written):
    """At the `count`-th record, the process dies after `written` of its line reached the disk."""
    calls = []

    def append(path, record):
        calls.append(record)
        if len(calls) == count:
            line = record.to_json().encode() + b"\n"
            with open(path, "ab") as file:
                file.write(line[: int(written * len(line))])
            raise Stop
        append_record(path, record)

    monkeypatch.setattr(sweep, "append_record", append)


@pytest.mark.filterwarnings("ignore:.*not a whole record")
@pytest.mark.parametrize(
    ("count", "written"), [(1, 0.0), (2, 0.5), (3, 0.0), (5, 0.7), (6, 1.0), (12, 0.5)]
)
def test_stopped_and_started_again_it_ends_with_the_same_records(
    undisturbed, config, tmp_path, monkeypatch, count, written
):
    with monkeypatch.context() as patch:
        stop_in_append(patch, count, written)
        with pytest.raises(Stop):
            run(config, tmp_path)
    kept = {record.hash for record in study_records(tmp_path)}
    measured = []
    measure = bench._Lite0Bench.measure

    def counted(self, point, record):
        measured.append(record.hash)
        return measure(self, point, record)

    monkeypatch.setattr(bench._Lite0Bench, "measure", counted)
    records = run(config, tmp_path)
    assert not kept & set(measured)  # no finished point is repeated
    assert results(records) == results(undisturbed[1])
    for record in records:
        if record.kind == "samples":
            name = f"samples/{record.hash}.png"
            assert (tmp_path / name).read_bytes() == (undisturbed[0] / name).read_bytes()


def test_a_finished_study_measures_nothing(undisturbed, config, monkeypatch):
    monkeypatch.setattr(bench._Lite0Bench, "_prepare", lambda *_: pytest.fail("loaded a model"))
    assert results(run(config, undisturbed[0])) == results(undisturbed[1])


def test_a_full_disk_leaves_whole_records(config, tmp_path, monkeypatch):
    write, calls = sweep.write_atomically, []

    def full(path, content):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(sweep, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        run(config, tmp_path)
    records = read_records(tmp_path / "records.jsonl")
    assert [r.kind for r in records].count("samples") == 1
    assert not list((tmp_path / "samples").glob("*.partial"))


def test_jobs_of_an_array_share_a_folder(undisturbed, config, tmp_path):
    total = len(planned(config))
    for index in (total - 1, 0):
        run(config, tmp_path, [index])
    written = sorted(p.name for p in tmp_path.glob("*.jsonl"))
    assert written == ["records-00000.jsonl", "records-00009.jsonl"]
    states = [line.split()[2] for line in listing(config, tmp_path)]
    assert [i for i, state in enumerate(states) if state == "done"] == [0, total - 1]
    assert results(run(config, tmp_path)) == results(undisturbed[1])
    assert len(read_records(tmp_path / "records.jsonl")) == total - 2


def test_one_program_serves_all_points_of_both_models(undisturbed, models):
    assert len(undisturbed[1]) == 10 + 2
    folders = (models / "early", models / "late")
    mesh = make_mesh(replica=-1, fsdp=1)  # as the study's
    programs = {Generator(Model.from_folder(f, HashedText()), mesh=mesh)._draw for f in folders}
    assert [program._cache_size() for program in programs] == [1]


def changed(config, **fields):
    copy = ConfigDict(json.loads(config.to_json_best_effort()))
    for name, value in fields.items():
        target, *rest = name.split("__")
        if rest:
            copy[target][rest[0]] = value
        else:
            copy[target] = value
    return copy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grids": {"dim": {"steps": (2,), "guidance": (1.0,)}}}, "sampler='dim'.*ddim"),
        ({"grids__ddim": {"steps": (0,), "guidance": (1.0,)}}, "steps=0: .* at least 1"),
        ({"grids__ddim": {"steps": (1001,), "guidance": (1.0,)}}, "steps=1001: .* at most 1000"),
        ({"grids__ddim": {"steps": (2,), "guidance": (float("nan"),)}}, "guidance=nan"),
        (
            {"grids__ddpm": {"steps": (2,), "guidance": (1.0,), "eta": 0.5}},
            "eta=0.5: ddpm has none",
        ),
        ({"grids__ddim": {"steps": (2, 2), "guidance": (1.0,)}}, "list the same point twice"),
        ({"seeds": ()}, "one of them is empty"),
        ({"protocol__num_samples": 3}, "num_samples=3"),
    ],
)
def test_bad_studies_are_refused_before_anything_runs(config, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        run(changed(config, **fields), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_model_is_named(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="model='micro-17': neither a folder"):
        run(changed(config, models=("micro-17",)), tmp_path)
    with pytest.raises(ValueError, match=r"index=10: the study has points 0\.\.9"):
        run(config, tmp_path, [10])


def test_prompts_repeat_in_turn(config, tmp_path):
    (_, record), *_ = planned(changed(config, protocol__prompts=("a cat", "a dog", "a cow")))
    assert record.protocol["strip_captions"][:4] == ["a cat", "a dog", "a cow", "a cat"]
    assert record.hash != planned(config)[0][1].hash
    assert isinstance(Record.from_json(record.to_json()), Record)


def get_config(file, argument):
    path = Path(__file__).parents[2] / "configs" / file
    return runpy.run_path(str(path))["get_config"](*argument)


@pytest.mark.parametrize("study", ["micro", "micro-full", "micro-training"])
def test_configs_plan_whole_studies(models, study):
    config = get_config("study.py", [study])
    assert get_config("sweep.py", [study]) == config
    if study != "micro-training":
        assert len(config.models) >= 4
        assert len(config.grids) == 3
    config.models = (str(models / "early"), str(models / "late"))
    per_model = sum(len(g.steps) * len(g.guidance) for g in config.grids.values())
    assert len(planned(config)) == 2 * per_model * len(config.seeds)


def test_an_unknown_study_is_named():
    with pytest.raises(ValueError, match="study='mirco': did you mean 'micro'"):
        get_config("study.py", ["mirco"])
