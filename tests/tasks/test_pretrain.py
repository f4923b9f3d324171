import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.checkpoint.diffusers import export_autoencoder, import_autoencoder, import_unet
from ldm_scaling.checkpoint.pipeline_folder import read_model_index, read_scheduler
from ldm_scaling.data.transforms import to_float
from ldm_scaling.diffusion import Schedule
from ldm_scaling.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ldm_scaling.encoders.bert import Bert, BertConfig
from ldm_scaling.sharding import make_mesh, put_batch
from ldm_scaling.tasks import FrozenEncoders, PretrainTask, Task
from ldm_scaling.tasks.pretrain import CACHED_COLUMNS
from ldm_scaling.train.optimizer import make_optimizer
from ldm_scaling.train.step import build, example_keys
from ldm_scaling.unet import UNetConfig
from tests.checkpoint.hub_cache import write_snapshot

VAE = AutoencoderConfig(
    latent_channels=4,
    block_out_channels=(8, 8),
    layers_per_block=1,
    norm_groups=4,
    mid_attention=False,
    scaling_factor=0.7,
)
BERT = BertConfig(
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=8,
)
UNET = UNetConfig(
    sample_size=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention_levels=(True, False),
    heads=2,
    norm_groups=4,
    context_size=8,
    prediction_type="v_prediction",
)
QUICK = {"xla_backend_optimization_level": 0}  # compiling is most of the time here
SCHEDULE = Schedule.zero_terminal_snr()


def tokenize(prompts, max_tokens):
    """One token a letter."""
    ids = np.zeros((len(prompts), max_tokens), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        codes = [1, *(2 + ord(letter) % 48 for letter in prompt)][:max_tokens]
        row[: len(codes)] = codes
    return ids, (ids > 0).astype(np.int32)


@pytest.fixture(scope="module")
def encoders():
    return FrozenEncoders(VAE, BERT, tokenize, max_tokens=6)


@pytest.fixture(scope="module")
def encoder_params(random_params):
    ids = jnp.zeros((1, 6), jnp.int32)
    image = jnp.zeros((1, 8, 8, 3))
    return {
        "autoencoder": random_params(Autoencoder(VAE).init, jax.random.key(1), image)["params"],
        "text_encoder": random_params(Bert(BERT).init, jax.random.key(2), ids, ids)["params"],
    }


@pytest.fixture(scope="module")
def unconditional(encoders, encoder_params):
    return encoders.unconditional_context(encoder_params)


@pytest.fixture(scope="module")
def cached(unconditional):
    return PretrainTask(UNET, SCHEDULE, VAE, unconditional, caption_dropout=0.25)


@pytest.fixture(scope="module")
def online(unconditional, encoders, encoder_params):
    return PretrainTask(
        UNET,
        SCHEDULE,
        VAE,
        unconditional,
        encoders=encoders,
        encoder_params=encoder_params,
        caption_dropout=0.25,
    )


@pytest.fixture(scope="module")
def raw_batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.uniform(-1, 1, (8, 8, 8, 3)).astype(np.float32),
        "caption": np.array(["a", "bc", "", "def", "g", "h", "ij", "k"], dtype=object),
        "example_id": np.arange(8, dtype=np.int32),
    }


@pytest.fixture(scope="module")
def cached_batch(raw_batch, encoders, encoder_params):
    tokens = encoders.tokenize(raw_batch["caption"])
    encode = jax.jit(encoders.encode_batch, compiler_options=QUICK)
    encoded = encode(encoder_params, {"image": raw_batch["image"], **tokens})
    return {**raw_batch, **{name: np.asarray(x) for name, x in encoded.items()}}


@pytest.fixture(scope="module")
def params(cached, random_params):
    return random_params(cached.init, jax.random.key(0))


def test_they_are_tasks(cached, online):
    assert isinstance(cached, Task)
    assert isinstance(online, Task)
    assert cached.point == {"task": "pretrain", "family": "paper", "width": 8}
    assert set(cached.frozen) == {"unconditional"}
    assert set(online.frozen) == {"unconditional", "autoencoder", "text_encoder"}
    assert cached.forward_flops > 1e5


def test_online_and_cached_give_the_same_loss(cached, online, raw_batch, cached_batch, params):
    half = {name: cached_batch[name].astype(np.float16) for name in CACHED_COLUMNS}
    stored = {**cached_batch, **half}
    keys = example_keys(0, jnp.arange(8), jnp.asarray(3))
    step = jnp.asarray(3)
    losses = [
        jax.jit(task.loss, compiler_options=QUICK)(
            params, task.frozen, task.host_batch(batch), keys, step
        )[0]
        for task, batch in ((cached, cached_batch), (online, raw_batch), (cached, stored))
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-3)
    assert losses[0] != losses[2]  # half precision was what the third one saw
    assert all(loss.dtype == jnp.float32 for loss in losses)
    assert np.isfinite(losses[0])


def test_bytes_are_the_images_they_stand_for(encoders, encoder_params):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    encode = jax.jit(encoders.encode_images, compiler_options=QUICK)
    for ours, theirs in zip(
        encode(encoder_params, images), encode(encoder_params, to_float(images)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_gradient_reaches_the_frozen_parts(online, raw_batch, params):
    keys = example_keys(0, jnp.arange(8), jnp.asarray(0))
    batch = jax.tree.map(jnp.asarray, online.host_batch(raw_batch))

    def loss(encoders):
        frozen = {**encoders, "unconditional": online.frozen["unconditional"]}
        return online.loss(params, frozen, batch, keys, jnp.asarray(0))[0]

    parts = {name: online.frozen[name] for name in ("autoencoder", "text_encoder")}
    grads = jax.jit(jax.grad(loss), compiler_options=QUICK)(parts)
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_padding_carries_no_information(encoders, encoder_params, unconditional):
    tokens = encoders.tokenize(["abc"])
    context = jax.jit(encoders.encode_text)(encoder_params, **tokens)
    assert context.shape == (1, 6, 8)
    np.testing.assert_array_equal(context[0, 4:], 0)
    longer = FrozenEncoders(VAE, BERT, tokenize, max_tokens=8)
    padded = jax.jit(longer.encode_text)(encoder_params, **longer.tokenize(["abc"]))
    np.testing.assert_allclose(padded[0, :6], context[0], atol=1e-5)
    np.testing.assert_array_equal(unconditional[1:], 0)


def test_captions_are_dropped_for_the_unconditional_context(cached, unconditional):
    context = jnp.ones((4000, 6, 8))
    keys = example_keys(0, jnp.arange(4000), jnp.asarray(0))
    dropped = np.asarray(cached._drop_captions(cached.frozen, context, keys))
    is_dropped = (dropped == unconditional).all((1, 2))
    assert ((dropped == 1).all((1, 2)) | is_dropped).all()
    assert abs(is_dropped.mean() - 0.25) < 0.03
    again = example_keys(0, jnp.arange(4000), jnp.asarray(1))
    other = np.asarray(cached._drop_captions(cached.frozen, context, again))
    assert 0.3 < ((other == unconditional).all((1, 2)) != is_dropped).mean() < 0.45


def test_latents_are_drawn_from_the_scaled_posterior(cached):
    n = 4000
    batch = {
        "latent_mean": jnp.full((n, 2, 2, 4), 3.0),
        "latent_std": jnp.full((n, 2, 2, 4), 0.5),
    }
    keys = example_keys(0, jnp.arange(n), jnp.asarray(0))
    latents = np.asarray(cached._sample_latents(batch, keys))
    np.testing.assert_allclose(latents.mean(), 3 * 0.7, rtol=0.01)
    np.testing.assert_allclose(latents.std(), 0.5 * 0.7, rtol=0.02)


def test_export_is_a_pipeline_folder(unconditional, encoder_params, params, tmp_path):
    export_autoencoder(VAE, encoder_params["autoencoder"], tmp_path / "vae")
    vae = write_snapshot(tmp_path / "cache", "owner/vae", tmp_path / "vae")  # symbolic links
    task = PretrainTask(
        UNET,
        SCHEDULE,
        VAE,
        unconditional,
        spacing="trailing",
        companions={"vae": vae},
        index={"text_encoder": ("ldm_scaling", "minilm")},
    )
    folder = tmp_path / "export"
    folder.mkdir()
    task.export(params, folder)
    config, loaded = import_unet(folder / "unet")
    assert (config.block_out_channels, config.prediction_type) == ((8, 16), "v_prediction")
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(params))
    shutil.rmtree(tmp_path / "cache")
    assert import_autoencoder(folder / "vae")[0] == VAE
    scheduler = read_scheduler(folder)
    assert Schedule.from_config(scheduler) == SCHEDULE
    assert scheduler["timestep_spacing"] == "trailing"
    assert scheduler["prediction_type"] == "v_prediction"
    index = read_model_index(folder)
    assert index["text_encoder"] == ("ldm_scaling", "minilm")
    assert index["vae"] == ("diffusers", "AutoencoderKL")
    json.loads((folder / "model_index.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_size": 9}, "context_size=9: the text encoder gives 8"),
        ({"in_channels": 8}, "in_channels=8: the autoencoder's latents have 4"),
        ({"prediction_type": "epsilon"}, "prediction_type='epsilon'"),
        ({"caption_dropout": 1.0}, "caption_dropout=1.0"),
    ],
)
def test_what_does_not_fit_is_refused(unconditional, changes, message):
    dropout = changes.pop("caption_dropout", 0.1)
    config = dataclasses.replace(UNET, **changes)
    with pytest.raises(ValueError, match=message):
        PretrainTask(config, SCHEDULE, VAE, unconditional, caption_dropout=dropout)


@pytest.fixture(scope="module")
def two_steps(online, raw_batch, toy_optimizer):
    """run(devices, mesh sizes) -> losses and parameters after two steps, and the state in place."""
    # Adam divides by the gradient's size: where it is rounding noise, so would the update be.
    toy_optimizer = toy_optimizer.copy_and_resolve_references()
    toy_optimizer.update(eps=1e-2, learning_rate=1e-3)
    batch = online.host_batch(raw_batch)

    def run(devices, **sizes):
        mesh = make_mesh(**sizes, devices=devices)
        optimizer = make_optimizer(toy_optimizer)
        program = build(online, optimizer, mesh, seed=0, ema_decay=0.9, min_shard_size=64)
        state, frozen = program.init(), jax.device_put(online.frozen, program.frozen)
        losses = []
        for _ in range(2):
            state, metrics = program.step(state, frozen, put_batch(mesh, batch))
            losses.append(float(metrics["loss"]))
        return losses, jax.device_get(state.params), state, frozen

    return run


@pytest.fixture(scope="module")
def on_one_device(two_steps):
    return two_steps(jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2)])
def test_every_mesh_does_what_one_device_does(two_steps, on_one_device, sizes):
    """Text encoder, autoencoder and UNet in slices: losses and parameters stay the same."""
    replica, fsdp, tensor = sizes
    losses, params, state, frozen = two_steps(
        jax.devices(), replica=replica, fsdp=fsdp, tensor=tensor
    )
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(on_one_device[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for tree in (state.params, state.ema_params, state.opt_state[1][0].mu, frozen):
        axes = [str(leaf.sharding.spec) for leaf in jax.tree.leaves(tree)]
        assert any("fsdp" in a for a in axes) == (fsdp > 1)
        assert any("tensor" in a for a in axes) == (tensor > 1)
