import json

import pytest
from ml_collections import ConfigDict

from ldm_scaling.train.workdir import STUDY_RESUMABLE, ForeignWorkdirError, claim_workdir, flatten
from tests.train.toy import toy_config


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
