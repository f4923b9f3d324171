import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_configs import get_config

from ldm_scaling.checkpoint.diffusers import import_autoencoder, import_unet
from ldm_scaling.data import open_source
from ldm_scaling.sharding import make_mesh
from ldm_scaling.tasks import AutoencoderTask
from ldm_scaling.train import train
from ldm_scaling.train.assemble import assemble, split_folder
from ldm_scaling.train.precompute import precompute, result_folder


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """A folder of 24 captioned images, the same for training and validation."""
    folder = tmp_path_factory.mktemp("discs")
    rng, lines = np.random.default_rng(0), []
    y, x = np.mgrid[:16, :16]
    for i in range(24):
        image = np.full((16, 16, 3), 255, np.uint8)
        image[np.hypot(y - rng.integers(5, 11), x - rng.integers(5, 11)) < 4] = rng.integers(
            0, 256, 3
        )
        Image.fromarray(image).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"disc {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def small(config, discs):
    """The config on the discs, for 4 steps."""
    config.data.update(name=str(discs), train_split="train", validation_split="all", image_size=16)
    config.update(batch_size=8, num_steps=4, log_every=2, eval_every=4, eval_batches=1)
    config.optimizer.warmup_steps = 1
    return config


@pytest.fixture
def autoencoder_config(discs):
    config = small(get_config("autoencoder", "micro"), discs)
    config.model.update(block_out_channels=(8, 16), norm_groups=4, latent_channels=4)
    return config


def test_autoencoder_is_assembled(autoencoder_config, tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    task, training, validation = assemble(autoencoder_config, tmp_path, mesh)
    assert isinstance(task, AutoencoderTask)
    assert task.config.block_out_channels == (8, 16)
    batch = task.host_batch(training.batch(0))
    assert batch["image"].shape == (8, 16, 16, 3)
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    assert validation.batch(0)["image"].shape == (8, 16, 16, 3)


def test_validation_is_optional(autoencoder_config, tmp_path):
    autoencoder_config.data.validation_split = ""
    assert assemble(autoencoder_config, tmp_path, make_mesh())[2] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "pretain"}, "task='pretain': did you mean 'pretrain'"),
        ({"autoencoder": ""}, "autoencoder='': give 'micro'"),
        ({"task": "autoencoder", "data": {"name": ""}}, "data.name='': give a data set"),
        ({"data": {"caption": "random"}}, "data.caption='random': a cache holds one caption"),
    ],
)
def test_what_is_missing_is_named(changes, message, tmp_path):
    config = get_config("pretrain", "micro-16")
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        assemble(config, tmp_path, make_mesh(devices=jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["ahead", "at start", "no"])
def test_from_images_to_a_pipeline_folder(autoencoder_config, discs, tmp_path, cache):
    """Both tasks through the one loop, with the real text encoder, on eight devices.

    Encoded ahead, training never sees the images.
    """
    train(autoencoder_config, tmp_path / "vae")
    vae, _ = import_autoencoder(tmp_path / "vae" / "export" / "final")
    assert vae.scaling_factor != 0.18215

    config = small(get_config("pretrain", "micro-16"), discs)
    config.update(autoencoder=str(tmp_path / "vae" / "export" / "final"), cache=cache != "no")
    if cache == "ahead":
        folder = precompute(config, tmp_path / "encoded", dtype="float16", shard_examples=8)
        assert len(list(folder.glob("train/encoded.array_record-*"))) == 3
        config.update(cache_dir=str(folder), data={"name": ""})
    state = train(config, tmp_path / "run")
    assert int(state.step) == 4
    assert int(state.skipped_total) == 0
    folder = tmp_path / "run" / "export" / "final"
    unet, _ = import_unet(folder / "unet")
    assert (unet.in_channels, unet.sample_size, unet.block_out_channels[0]) == (4, 8, 16)
    assert import_autoencoder(folder / "vae")[0] == vae
    sets = sorted(path.parent.name for path in (tmp_path / "run").glob("cache/*/encoding.json"))
    assert sets == (["all", "train"] if cache == "at start" else [])


def test_every_split_has_a_folder_of_its_own(tmp_path):
    splits = ("train", "test", "train[:10%]", "train[:10%", "train_10_", "../train", "a/b", "a_b")
    folders = [split_folder(tmp_path, split) for split in splits]
    assert folders[:2] == [tmp_path / "train", tmp_path / "test"]
    assert len(set(folders)) == len(splits)
    assert all(folder.parent == tmp_path for folder in folders)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "autoencoder"}, "task='autoencoder': only 'pretrain'"),
        ({}, "output='': data.name='noto_emoji' is no folder to write beside"),
        ({"data": {"name": ""}}, "data.name='': give a data set"),
    ],
)
def test_what_cannot_be_encoded_ahead_is_named(changes, message, tmp_path):
    config = get_config("pretrain", "micro-16")
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        precompute(config, tmp_path if "data" in changes else "")


def test_the_result_lies_beside_its_source(discs):
    config = get_config("pretrain", "micro-16")
    config.data.name = str(discs)
    assert result_folder(config) == discs.with_name("discs0-encoded")
    config.cache_dir = "elsewhere"
    assert result_folder(config) == Path("elsewhere")
    assert result_folder(config, "output") == Path("output")


def test_the_packaged_images_have_both_splits():
    config = get_config("pretrain", "micro-16")
    sizes = [len(open_source(config.data.name, s)) for s in ("train", "test")]
    assert sizes[0] > 8 * sizes[1] > 0
