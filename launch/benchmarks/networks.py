"""Networks: attention kernels, an evaluation, a training step, sampling; beside diffusers."""

import functools
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import Row, best_seconds

TOKENS, MICRO_BATCH, MICRO_STEPS, GUIDANCE = 24, 32, 16, 3.0


def random_params(module, *inputs):
    """Normal weights of a standard deviation that keeps activations finite, in float32."""
    import jax
    import numpy as np

    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.02, s.shape).astype(np.float32), shapes)


def peer_unet(config, params):
    """diffusers' UNet with the same weights; None where it is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers")):
        return None
    from diffusers import UNet2DConditionModel

    from ldm_scaling.checkpoint.diffusers import export_unet

    with tempfile.TemporaryDirectory() as folder:
        export_unet(config, params, Path(folder))
        return UNet2DConditionModel.from_pretrained(folder)


def large_inputs():
    import jax.numpy as jnp

    return jnp.ones((2, 64, 64, 4)), jnp.array([3.0, 700.0]), jnp.ones((2, 77, 1024))


def attention(repeats: int) -> Iterator[Row]:
    import jax

    from ldm_scaling.unet import UNet, unet_config

    inputs = large_inputs()
    params = random_params(UNet(unet_config(64)), *inputs)
    for kernel in ("xla", "chunked"):
        apply = jax.jit(UNet(unet_config(64, attention=kernel)).apply)
        call = functools.partial(apply, {"params": params}, *inputs)
        seconds = best_seconds(lambda call=call: jax.block_until_ready(call()), repeats)
        yield Row("evaluation, c = 64, 64x64, batch 2", kernel, seconds, "xla")


def forward(repeats: int) -> Iterator[Row]:
    import jax
    import numpy as np

    from ldm_scaling.unet import UNet, unet_config

    what, config, inputs = "evaluation, c = 64, 64x64, batch 2", unet_config(64), large_inputs()
    params = random_params(UNet(config), *inputs)
    if (peer := peer_unet(config, params)) is not None:
        import torch

        x, t, context = (torch.tensor(np.asarray(array)) for array in inputs)
        with torch.no_grad():
            seconds = best_seconds(lambda: peer(x.permute(0, 3, 1, 2), t, context), repeats)
        yield Row(what, "diffusers", seconds, "diffusers")
    apply = jax.jit(UNet(config).apply)
    ours = best_seconds(lambda: jax.block_until_ready(apply({"params": params}, *inputs)), repeats)
    yield Row(what, "ldm_scaling", ours, "diffusers")


def micro_inputs():
    """Latents, timesteps and contexts of a training batch of the micro family, and its weights."""
    import jax
    import jax.numpy as jnp

    from ldm_scaling.unet import UNet, micro_config

    config = micro_config(32)
    key = jax.random.key(0)
    x = jax.random.normal(key, (MICRO_BATCH, 8, 8, 16))
    context = jax.random.normal(key, (MICRO_BATCH, TOKENS, 384))
    t = jnp.linspace(0.0, 999.0, MICRO_BATCH)
    return config, random_params(UNet(config), x, t, context), x, t, context


def train(repeats: int) -> Iterator[Row]:
    """Forward, backward, AdamW and moving average on one batch."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from ldm_scaling.unet import UNet

    what = f"training step, micro-32, batch {MICRO_BATCH}"
    config, params, x, t, context = micro_inputs()
    if (peer := peer_unet(config, params)) is not None:
        import torch

        inputs = [torch.tensor(np.asarray(a)) for a in (x.transpose(0, 3, 1, 2), t, context)]
        optimizer = torch.optim.AdamW(peer.parameters(), 1e-3)
        ema = torch.optim.swa_utils.AveragedModel(
            peer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
        )

        def peer_step():
            optimizer.zero_grad()
            (peer(*inputs).sample - inputs[0]).square().mean().backward()
            optimizer.step()
            ema.update_parameters(peer)

        yield Row(what, "diffusers", best_seconds(peer_step, repeats), "diffusers")

    optimizer = optax.adamw(1e-3)

    def loss(params):
        prediction = UNet(config).apply({"params": params}, x, t, context)
        return jnp.square(prediction - x).mean()

    def step(state):
        params, moments, ema = state
        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        params = optax.apply_updates(params, updates)
        return params, moments, optax.incremental_update(params, ema, 1e-3)

    step = jax.jit(step, donate_argnums=0)
    copy = jax.tree.map(jnp.copy, params)
    state = (jax.device_put(params), jax.jit(optimizer.init)(params), copy)

    def our_step():
        nonlocal state
        state = jax.block_until_ready(step(state))

    yield Row(what, "ldm_scaling", best_seconds(our_step, repeats), "diffusers")


def sample(repeats: int) -> Iterator[Row]:
    """DDIM with guidance, latents only."""
    import jax
    import numpy as np

    from ldm_scaling import diffusion
    from ldm_scaling.unet import UNet

    what = f"{MICRO_BATCH} latents, micro-32, {MICRO_STEPS} steps of DDIM, guided"
    schedule = diffusion.Schedule.zero_terminal_snr()
    config, params, x, _, context = micro_inputs()
    if (peer := peer_unet(config, params)) is not None:
        import torch
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(
            **schedule.to_config(), prediction_type="v_prediction", timestep_spacing="trailing"
        )
        conditional = torch.tensor(np.asarray(context))
        both = torch.cat([torch.zeros_like(conditional), conditional])

        @torch.no_grad()
        def peer_sample():
            scheduler.set_timesteps(MICRO_STEPS)
            latents = torch.tensor(np.asarray(x.transpose(0, 3, 1, 2)))
            for t in scheduler.timesteps:
                plain, guided = peer(torch.cat([latents] * 2), t, both).sample.chunk(2)
                v = plain + GUIDANCE * (guided - plain)
                latents = scheduler.step(v, t, latents).prev_sample

        yield Row(what, "diffusers", best_seconds(peer_sample, repeats), "diffusers")

    table = diffusion.pad(
        diffusion.sampler_table("ddim", schedule, MICRO_STEPS, spacing="trailing"), MICRO_STEPS
    )
    keys = jax.random.split(jax.random.key(0), MICRO_BATCH)
    rates, nothing = np.full(MICRO_BATCH, GUIDANCE, np.float32), np.zeros((1, TOKENS, 384))

    def draw(params, context, x):
        def model_fn(x, t, context):
            return UNet(config).apply({"params": params}, x, t, context)

        guided = diffusion.classifier_free_guidance(model_fn, rates, nothing)
        denoise = diffusion.to_denoiser(guided, context, schedule, "v_prediction")
        return diffusion.sample(denoise, table, x, keys)

    draw = jax.jit(draw)
    ours = best_seconds(lambda: jax.block_until_ready(draw(params, context, x)), repeats)
    yield Row(what, "ldm_scaling", ours, "diffusers")
