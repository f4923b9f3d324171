"""The configs as a user meets them: `--config=FILE:ARGUMENT --config.FIELD=VALUE`."""

import runpy
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

import ldm_scaling
from ldm_scaling.analysis.figures_compile import pod_rows, table
from ldm_scaling.encoders import AutoencoderConfig
from ldm_scaling.records import read_records
from ldm_scaling.tasks import AutoencoderLoss
from ldm_scaling.train.assemble import from_fields
from ldm_scaling.train.optimizer import make_optimizer
from ldm_scaling.train.workdir import RESUMABLE, flatten

CONFIGS = Path(__file__).parents[2] / "configs"
ASSETS = Path(ldm_scaling.__file__).parent / "assets"


@pytest.fixture
def parse(monkeypatch):
    """What `launch/train.py` would train, given some arguments."""

    def parse(*arguments):
        # ml_collections looks for overrides in sys.argv, whatever is parsed.
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
        values(sys.argv)
        return holder.value

    return parse


def load(name):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))


def get_config(name, argument):
    return load(name)["get_config"](argument)


@pytest.mark.parametrize("size", ["micro", "sd"])
def test_autoencoder_configs_say_something_that_exists(size):
    config = get_config("autoencoder", size)
    model = from_fields(AutoencoderConfig, config.model)
    if size == "sd":
        assert model == AutoencoderConfig()
    from_fields(AutoencoderLoss, config.loss)
    make_optimizer(config.optimizer)


@pytest.mark.parametrize(
    ("name", "argument", "nearest"),
    [
        ("autoencoder", "mikro", "'micro'"),
        ("pods", "v5p-32", "'v5p-320'"),
        ("pretrain", "300", "'288'"),
        ("pretrain", "micro-31", "'micro-32'"),
        ("pretrain", "micro", "'micro-"),
        ("pretrain", "32O", "'320'"),
    ],
)
def test_unknown_argument_names_the_nearest(name, argument, nearest):
    with pytest.raises(ValueError, match=f"did you mean {nearest}"):
        get_config(name, argument)


def test_pods_are_what_was_compiled():
    """Every recommended slice has its record, made with these settings, and the model fits."""
    records = {
        (r.point["topology"], r.point["width"]): r
        for r in read_records(ASSETS / "records" / "pods.jsonl")
        if r.point["program"] == "train"
    }
    for name in load("pods")["PODS"]:
        config = get_config("pods", name)
        record = records[config.topology, config.width]
        for axis in ("replica", "fsdp", "tensor"):
            assert record.point[f"mesh_{axis}"] == config.mesh[axis]
        for field in ("batch_size", "accumulate", "cache"):
            assert record.point[field] == config[field]
        assert record.point["remat"] == config.model.remat
        assert record.point.get("tpu_options", "") == config.tpu_options
        assert record.costs["hbm_bytes"] < record.costs["hbm_capacity"]


def test_the_readme_shows_the_recommended_slices():
    records = read_records(ASSETS / "records" / "pods.jsonl")
    assert table(pod_rows(records)) in (CONFIGS.parent / "README.md").read_text()


def test_the_smallest_slices_hold_what_the_readme_says():
    readme = (CONFIGS.parent / "README.md").read_text()
    records = read_records(ASSETS / "records" / "smallest_slices.jsonl")
    assert records
    for record in records:
        costs, point = record.costs, record.point
        assert costs["hbm_bytes"] < costs["hbm_capacity"]
        assert not costs["unknown_loops"]
        assert f"in {point['accumulate']} parts, {costs['hbm_bytes'] / 2**30:.1f} of" in readme
        assert f"{costs['seconds']:.1f} s a step" in readme
        assert f"--config.mesh.fsdp={point['mesh_fsdp']}" in readme


def test_overrides_reach_the_config(parse):
    config = parse(
        f"--config={CONFIGS}/autoencoder.py:micro",
        "--config.num_steps=7",
        "--config.optimizer.learning_rate=0.25",
        "--config.export_steps=(1,5)",
        "--config.model.block_out_channels=(8,16)",
    )
    assert (config.num_steps, config.optimizer.decay_steps) == (7, 7)
    assert config.optimizer.learning_rate == 0.25
    assert config.export_steps == (1, 5)
    assert config.model.block_out_channels == (8, 16)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("--config.num_stps=7", "num_steps"),
        ("--config.optimizer.learning_rat=7", "learning_rate"),
        ("--config.optimiser.learning_rate=7", "optimizer"),
    ],
)
def test_unknown_field_names_the_nearest(parse, override, nearest):
    with pytest.raises((AttributeError, KeyError), match=f'Did you mean "{nearest}"'):
        parse(f"--config={CONFIGS}/autoencoder.py:micro", override)


def test_unknown_model_field_names_the_nearest():
    config = get_config("autoencoder", "micro")
    with config.model.unlocked():
        config.model.latent_chanels = 4
    with pytest.raises(
        ValueError,
        match="'latent_chanels': did you mean 'latent_channels'",
    ):
        from_fields(AutoencoderConfig, config.model)


@pytest.mark.parametrize(("name", "argument"), [("autoencoder", "micro"), ("pretrain", "micro-32")])
def test_resumable_fields_exist(name, argument):
    fields = flatten(get_config(name, argument).to_dict())
    for resumable in RESUMABLE:
        if resumable == "cache_dir" and name == "autoencoder":
            continue
        assert any(f == resumable or f.startswith(resumable + ".") for f in fields), resumable


@pytest.mark.parametrize("width", ["64", "320", "768", "micro-16", "micro-48"])
def test_pretrain_configs_cover_both_families(width):
    config = get_config("pretrain", width)
    micro = width.startswith("micro")
    assert config.family == ("micro" if micro else "paper")
    assert config.model.context_size == (384 if micro else 1024)
    make_optimizer(config.optimizer)
