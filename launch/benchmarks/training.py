"""A training step of a micro model: forward, backward, AdamW and moving average."""

from pathlib import Path

import numpy as np

from benchmarks.cases import TORCH, Call, Case, Side, diffusers_unet, torch_arrays, write_unet

MICRO_BATCH, MICRO_TOKENS = 32, 24


def micro_inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, timesteps and contexts of a training batch of the micro family."""
    rng = np.random.default_rng(1)
    latents = rng.normal(size=(MICRO_BATCH, 8, 8, 16)).astype(np.float32)
    context = rng.normal(size=(MICRO_BATCH, MICRO_TOKENS, 384)).astype(np.float32)
    return latents, np.linspace(0, 999, MICRO_BATCH, dtype=np.float32), context


def training_diffusers(folder: Path) -> Call:
    import torch

    model = diffusers_unet(folder).train()
    torch.set_grad_enabled(True)
    inputs = torch_arrays(*micro_inputs())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average)

    def call() -> None:
        optimizer.zero_grad()
        (model(*inputs).sample - inputs[0]).square().mean().backward()
        optimizer.step()
        ema.update_parameters(model)

    return call


def training_ours(folder: Path) -> Call:
    import jax
    import jax.numpy as jnp
    import optax

    from ldm_scaling.checkpoint.diffusers import import_unet
    from ldm_scaling.unet import UNet

    config, params = import_unet(folder)
    x, t, context = jax.device_put(micro_inputs())
    optimizer = optax.adamw(1e-3)

    def loss(params):
        return jnp.square(UNet(config).apply({"params": params}, x, t, context) - x).mean()

    def step(state):
        params, moments, ema = state
        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        params = optax.apply_updates(params, updates)
        return params, moments, optax.incremental_update(params, ema, 1e-3)

    step = jax.jit(step, donate_argnums=0)
    params = jax.device_put(params)
    state = (params, jax.jit(optimizer.init)(params), jax.tree.map(jnp.copy, params))

    def call() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state))

    return call


def training() -> Case:
    def prepare(folder: Path) -> None:
        from ldm_scaling.unet import micro_config

        write_unet(folder, micro_config(32))

    return Case(
        f"training step, micro-32, batch {MICRO_BATCH}",
        prepare,
        {
            "diffusers": Side(training_diffusers, TORCH),
            "ldm_scaling": Side(training_ours),
        },
    )
