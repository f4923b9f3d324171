import json
import tempfile

import jax
import pytest
from etils import epath
from etils.epath import gpath
from etils.epath.testing import mock_epath
from ml_collections import ConfigDict

from ldm_scaling.records import read_records
from ldm_scaling.sharding import make_mesh
from ldm_scaling.train import loop
from ldm_scaling.train.workdir import (
    STUDY_RESUMABLE,
    ForeignWorkdirError,
    Workdir,
    claim_workdir,
    flatten,
)
from tests.train.toy import ToyBatches, ToyTask, toy_config


@pytest.fixture
def workdir(tmp_path):
    claim_workdir(tmp_path, toy_config())
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def test_the_resolved_config_is_kept(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    assert flatten(stored) == flatten(toy_config().to_dict())
    assert stored["optimizer"]["learning_rate"] == 0.01


def test_the_same_config_goes_on(workdir):
    claim_workdir(workdir, toy_config())


def test_what_does_not_decide_a_step_may_change(workdir):
    claim_workdir(
        workdir,
        toy_config(
            num_steps=99, log_every=1, checkpoint_every=7, mesh={"fsdp": 1}, export_steps=(1,)
        ),
    )
    assert json.loads((workdir / "config.json").read_text())["num_steps"] == 99


def test_another_config_is_refused_with_the_fields(workdir):
    config = toy_config(batch_size=32, num_steps=5)
    config.optimizer.learning_rate = 0.5
    config.extra = "new"
    with pytest.raises(ForeignWorkdirError) as error:
        claim_workdir(workdir, config)
    message = str(error.value)
    assert "batch_size: 16 there, 32 here" in message
    assert "optimizer.learning_rate: 0.01 there, 0.5 here" in message
    assert "extra: 'absent' there, 'new' here" in message
    assert "num_steps" not in message
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 16


def test_a_folder_without_checkpoints_is_free(tmp_path):
    claim_workdir(tmp_path, toy_config())
    claim_workdir(tmp_path, toy_config(batch_size=32))
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 32


def study_config(**protocol):
    return ConfigDict({"models": ("a",), "grids": {"ddim": {"steps": (2,)}}, "protocol": protocol})


def claim_study(workdir, config):
    claim_workdir(workdir, config, results="records*.jsonl", resumable=STUDY_RESUMABLE)


def test_a_study_may_grow_but_not_change_its_protocol(tmp_path):
    claim_study(tmp_path, study_config(num_samples=8))
    claim_study(tmp_path, study_config(num_samples=16))  # nothing measured yet
    (tmp_path / "records-00003.jsonl").touch()
    grown = study_config(num_samples=16)
    grown.models, grown.grids.ddpm = ("a", "b"), {"steps": (4,)}
    claim_study(tmp_path, grown)
    assert json.loads((tmp_path / "config.json").read_text())["models"] == ["a", "b"]
    with pytest.raises(ForeignWorkdirError, match=r"protocol\.num_samples: 16 there, 8 here"):
        claim_study(tmp_path, study_config(num_samples=8))
    assert [p.name for p in tmp_path.glob("*.partial")] == []


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that stands for gs://bucket, with what an object store cannot do refused."""
    home = tmp_path / "bucket"
    home.mkdir()
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "machine"))

    def there(path):
        return str(path).replace("gs://bucket", str(home))

    def opened(original, path, mode):
        assert "a" not in mode, "an object store cannot append"
        return original(there(path), mode)

    def globbed(original, path):
        return [name.replace(str(home), "gs://bucket") for name in original(there(path))]

    def moved(original, path, target):
        return original(there(path), there(target))

    def plain(original, path, **options):
        return original(there(path), **options)

    names = ("exists", "isdir", "listdir", "makedirs", "mkdir", "remove", "rmtree", "stat")
    with mock_epath(
        open=opened, glob=globbed, rename=moved, replace=moved, **dict.fromkeys(names, plain)
    ):
        yield home


def test_a_run_in_a_bucket_can_be_claimed(bucket):
    folder = epath.Path("gs://bucket/run")
    claim_workdir(folder, toy_config())
    claim_workdir(folder, toy_config(batch_size=32))  # nothing there yet
    assert json.loads((bucket / "run" / "config.json").read_text())["batch_size"] == 32
    (folder / "checkpoints").mkdir()
    with pytest.raises(
        ForeignWorkdirError, match=r"workdir=gs://bucket/run holds .*\n.*batch_size"
    ):
        claim_workdir(folder, toy_config())


def test_what_is_written_here_is_published_whole(bucket):
    place = Workdir("gs://bucket/run")
    place.fetch()
    (place.local / "export" / "final").mkdir(parents=True)
    (place.local / "export" / "final" / "weights").write_bytes(b"123")
    (place.local / ".half.partial").write_text("half")
    (place.local / "cache").mkdir()
    (place.local / "cache" / "latents.npz").write_bytes(b"big")
    (place.local / "training.jsonl").write_text("one\n")
    place.publish()
    there = bucket / "run"
    assert {str(p.relative_to(there)) for p in there.rglob("*") if p.is_file()} == {
        "export/final/weights",
        "training.jsonl",
    }
    unchanged = (there / "export" / "final" / "weights").stat().st_mtime_ns
    with open(place.local / "training.jsonl", "a") as file:
        file.write("two\n")
    place.publish()
    assert (there / "training.jsonl").read_text() == "one\ntwo\n"
    assert (there / "export" / "final" / "weights").stat().st_mtime_ns == unchanged


def test_another_machine_goes_on_with_the_records_of_the_bucket(bucket):
    first = Workdir("gs://bucket/run")
    first.fetch()
    (first.local / "training.jsonl").write_text("one\n")
    first.publish()
    with open(first.local / "training.jsonl", "a") as file:
        file.write("after the last checkpoint, and before the death\n")
    (first.local / "cache").mkdir()
    (first.local / "export").mkdir()
    second = Workdir("gs://bucket/run")  # on the same machine: nothing stale is left but a cache
    second.fetch()
    assert second.local == first.local
    assert (second.local / "training.jsonl").read_text() == "one\n"
    assert sorted(path.name for path in second.local.iterdir()) == ["cache", "training.jsonl"]


def test_a_local_folder_is_its_own_spool(tmp_path):
    place = Workdir(tmp_path / "run")
    assert place.local == tmp_path / "run"
    place.fetch()
    place.publish()
    assert not place.local.exists()


def test_the_loop_publishes_at_each_checkpoint_and_at_the_end(bucket, monkeypatch, tmp_path):
    """Its checkpoints go elsewhere here: Orbax writes to buckets past etils' paths."""
    published = []
    original = loop.Checkpoints
    monkeypatch.setattr(
        loop, "Checkpoints", lambda folder, keep: original(tmp_path / folder.name, keep)
    )
    place = Workdir("gs://bucket/run")
    place.fetch()
    publish = place.publish

    def noted():
        publish()
        published.append(read_records(bucket / "run" / "training.jsonl")[-1].point["step"])

    monkeypatch.setattr(place, "publish", noted)
    seen = []  # steps in the bucket's progress.json, as they come

    def watched(path, publish_file=place.publish_file):
        publish_file(path)
        if path.name == "progress.json":
            seen.append(json.loads((bucket / "run" / path.name).read_text())["step"])

    monkeypatch.setattr(place, "publish_file", watched)
    mesh = make_mesh(devices=jax.devices()[:1])
    loop.run(toy_config(), place, mesh, ToyTask(), ToyBatches())
    there = bucket / "run"
    assert len(published) == 4  # after steps 5, 10 and 12, and at the end
    losses = [r for r in read_records(there / "training.jsonl") if r.kind == "training"]
    assert sorted(r.point["step"] for r in losses) == [4, 8, 12]
    assert (there / "export" / "final" / "params.npz").exists()
    assert list(there.glob("events.out.tfevents.*"))
    assert set(seen) == {4, 5, 8, 10, 12}  # at each log line, too
