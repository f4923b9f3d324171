import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_configs import get_config

from ldm_scaling.checkpoint.diffusers import (
    export_autoencoder,
    import_autoencoder,
    import_text_encoder,
    import_unet,
)
from ldm_scaling.checkpoint.pipeline_folder import read_model_index
from ldm_scaling.data import open_source
from ldm_scaling.encoders import Autoencoder, AutoencoderConfig
from ldm_scaling.evaluation import Model
from ldm_scaling.sharding import make_mesh, param_shardings
from ldm_scaling.tasks import AutoencoderTask
from ldm_scaling.train import train
from ldm_scaling.train.assemble import assemble, frozen_parts, split_folder
from ldm_scaling.train.precompute import precompute, result_folder
from tests.encoders.vocabularies import FOLDERS


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


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    config = AutoencoderConfig(
        block_out_channels=(8, 8), layers_per_block=1, norm_groups=4, mid_attention=False
    )
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(Autoencoder(config).init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp("vae")
    export_autoencoder(config, params, folder)
    return folder


@pytest.fixture
def text_config(vae_folder, discs, tmp_path):
    """text_config(kind, alone) -> the config of a run with a small encoder of that kind."""

    def make(kind, alone=False):
        home = tmp_path / "text"
        parts = (home, home) if alone else (home / "text_encoder", home / "tokenizer")
        FOLDERS[kind](*parts, 16)
        (home / "flax_model.msgpack").write_bytes(b"not ours")
        config = small(get_config("pretrain", "micro-16"), discs)
        config.update(autoencoder=str(vae_folder), text_encoder=str(home), max_tokens=8)
        config.update(cache=False)
        config.model.context_size = 16
        return config

    return make


@pytest.mark.parametrize("alone", [False, True], ids=["pipeline", "alone"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_any_text_encoder_is_frozen_and_sharded(text_config, kind, alone):
    config = text_config(kind, alone)
    frozen = frozen_parts(config)
    tokens = frozen.encoders.tokenize(["red disc", ""])
    context = jax.jit(frozen.encoders.encode_text)(frozen.params, **tokens)
    assert context.shape == (2, 8, frozen.encoders.context_size) == (2, 8, 16)
    assert np.abs(context[0, 0] - context[0, 1]).max() > 1e-3
    mesh = make_mesh(fsdp=4, tensor=2)
    shardings = param_shardings(mesh, frozen.params["text_encoder"], min_size=64)
    axes = [str(sharding.spec) for sharding in jax.tree.leaves(shardings)]
    assert sum("tensor" in a for a in axes) >= 10
    assert sum("fsdp" in a for a in axes) >= 7


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_the_text_encoder_may_compute_in_half_precision(text_config, kind):
    """Its contexts are float32 and within 2 % of float32's; a cache tells the two apart."""
    config, contexts, identities = text_config(kind), {}, {}
    for dtype in ("float32", "bfloat16"):
        config.text_encoder_dtype = dtype
        frozen = frozen_parts(config)
        tokens = frozen.encoders.tokenize(["red disc", "a cat", ""])
        contexts[dtype] = jax.jit(frozen.encoders.encode_text)(frozen.params, **tokens)
        identities[dtype] = dataclasses.asdict(frozen.encoders.text_encoder)
    exact, rough = contexts.values()
    assert rough.dtype == np.float32
    error = np.sqrt(np.square(rough - exact).mean() / np.square(exact).mean())
    assert 1e-4 < error < 0.02
    assert identities["float32"] != identities["bfloat16"]


@pytest.mark.parametrize(
    ("kind", "dtype", "message"),
    [
        ("bert", "bfloat16", "text_encoder_dtype='bfloat16': a BERT computes in 'float32' alone"),
        ("clip", "float16", "text_encoder_dtype='float16': did you mean 'bfloat16'"),
    ],
)
def test_other_precisions_of_the_text_encoder_are_refused(text_config, kind, dtype, message):
    config = text_config(kind)
    config.text_encoder_dtype = dtype
    with pytest.raises(ValueError, match=message):
        frozen_parts(config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOLDERS)
def test_training_with_any_text_encoder(text_config, tmp_path, kind):
    """From captions to a folder that draws, on eight devices, the encoder in slices."""
    config = text_config(kind, alone=kind == "t5")
    config.mesh.tensor = 2
    state = train(config, tmp_path / "run")
    assert (int(state.step), int(state.skipped_total)) == (4, 0)
    folder = tmp_path / "run" / "export" / "final"
    names = {"bert": "BertModel", "clip": "CLIPTextModel", "t5": "T5EncoderModel"}
    assert read_model_index(folder)["text_encoder"] == ("transformers", names[kind])
    files = {p.name for part in ("text_encoder", "tokenizer") for p in (folder / part).iterdir()}
    assert "flax_model.msgpack" not in files
    frozen = frozen_parts(config)
    assert import_text_encoder(folder / "text_encoder")[0] == frozen.encoders.text_encoder
    encoder = Model.from_folder(folder).text_encoder
    assert encoder.max_tokens == 8
    tokens = frozen.encoders.tokenize(["red disc"])
    expected = jax.jit(frozen.encoders.encode_text)(frozen.params, **tokens)
    np.testing.assert_allclose(encoder(["red disc"]), expected, atol=1e-5)


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
