import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.checkpoint.diffusers import import_autoencoder
from ldm_scaling.encoders import Autoencoder, AutoencoderConfig
from ldm_scaling.tasks import AutoencoderLoss, AutoencoderTask, Task
from ldm_scaling.train.optimizer import make_optimizer

QUICK = {"xla_backend_optimization_level": 0}  # compiling is most of the time here
CONFIG = AutoencoderConfig(
    latent_channels=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_groups=4,
    mid_attention=False,
)


@pytest.fixture(scope="module")
def images():
    """Soft coloured discs on white, [16, 16, 16, 3] in [-1, 1]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    centre, radius, colour = rng.uniform(5, 11, (16, 2)), rng.uniform(3, 6, 16), rng.random((16, 3))
    away = np.hypot(y - centre[:, :1, None], x - centre[:, 1:, None])
    mask = np.clip(radius[:, None, None] - away, 0, 1)[..., None]
    return (1 - 2 * mask * colour[:, None, None]).astype(np.float32)


@pytest.fixture(scope="module")
def task(images):
    return AutoencoderTask(CONFIG, AutoencoderLoss(kl=1e-3), images, family="tiny")


@pytest.fixture(scope="module")
def trained(task, images, toy_optimizer, random_params):
    """Parameters after 60 steps, and the losses on the way."""
    optimizer = make_optimizer(toy_optimizer)
    ids = jnp.arange(16, dtype=jnp.int32)
    batch = task.host_batch({"image": images, "example_id": ids, "caption": ["x"] * 16})
    batch = jax.tree.map(jnp.asarray, batch)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, opt_state, i):
        keys = jax.random.split(jax.random.key(i), 16)
        grad_fn = jax.value_and_grad(task.loss, has_aux=True)
        (_, metrics), grads = grad_fn(params, task.frozen, batch, keys, i)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state, metrics

    params = random_params(task.init, jax.random.key(0))
    opt_state, history = optimizer.init(params), []
    for i in range(60):
        params, opt_state, metrics = step(params, opt_state, i)
        history.append(jax.device_get(metrics))
    return params, history


def test_it_is_a_task(task):
    assert isinstance(task, Task)
    assert task.frozen == {}
    assert task.point == {"task": "autoencoder", "family": "tiny", "width": 8}
    assert task.forward_flops > 1e6


def test_it_learns_to_reconstruct(trained):
    _, history = trained
    assert history[-1]["l1"] < 0.5 * history[0]["l1"]
    assert history[-1]["psnr"] > history[0]["psnr"] + 4


def test_export_opens_with_latents_of_unit_size(task, trained, images, tmp_path):
    params, _ = trained
    task.export(params, tmp_path)
    config, loaded = import_autoencoder(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(params))
    written = json.loads((tmp_path / "config.json").read_text())["scaling_factor"]
    assert written == config.scaling_factor != AutoencoderConfig().scaling_factor

    encode = functools.partial(Autoencoder(config).apply, method="encode")
    mean, logvar = jax.jit(encode)({"params": loaded}, images)
    noise = np.random.default_rng(0).normal(size=mean.shape)
    latents = (mean + np.exp(0.5 * logvar) * noise) * config.scaling_factor
    np.testing.assert_allclose(latents.var((0, 1, 2)).mean(), 1, rtol=0.05)


def test_terms_of_the_loss(task, trained, images):
    """Against a plain NumPy account of the same quantities, with a posterior without noise."""
    params, _ = trained

    def quiet(images):
        mean, _ = task._module.apply({"params": params}, images, method="encode")
        return mean, jnp.full_like(mean, -30.0)

    silent = AutoencoderTask(
        CONFIG, AutoencoderLoss(kl=0.5, gradient=2.0, coarse=3.0), images, "tiny"
    )
    silent._encode = lambda params, images: quiet(images)
    keys = jax.random.split(jax.random.key(0), 16)
    silent_loss = jax.jit(silent.loss, compiler_options=QUICK)
    loss, metrics = silent_loss(params, {}, {"image": images}, keys, jnp.asarray(0))

    mean = np.asarray(jax.jit(quiet, compiler_options=QUICK)(images)[0])
    decoded = np.asarray(jax.jit(task._decode, compiler_options=QUICK)(params, mean))
    error = (decoded - images).astype(np.float64)
    pooled = [error.reshape(16, 16 // n, n, 16 // n, n, 3).mean((2, 4)) for n in (2, 4)]
    expected = {
        "l1": np.abs(error).mean(),
        "gradient": np.abs(np.diff(error, axis=1)).mean() + np.abs(np.diff(error, axis=2)).mean(),
        "coarse": sum(np.abs(p).mean() for p in pooled),
        "kl": (0.5 * (mean.astype(np.float64) ** 2 + np.exp(-30.0) - 1 + 30.0)).sum() / 16,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
    total = expected["l1"] + 2 * expected["gradient"] + 3 * expected["coarse"]
    np.testing.assert_allclose(loss, total + 0.5 * expected["kl"] / (16 * 16 * 3), rtol=1e-4)
