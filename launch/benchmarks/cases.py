"""What is timed: each case writes its weights once, and each of its sides reads them.

A side is a function of the folder of weights. It returns a call without arguments: what is timed.
Nothing is imported before a side is asked for, so that each process holds its own framework alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

GUIDANCE, STEPS = 7.5, 50
IMAGES, CAPTIONS = 8, 8
TORCH = ("torch", "diffusers")

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to compute a case.

    Attributes:
      build: folder of weights -> what is timed.
      needs: packages it imports; it is left out where one is missing.
    """

    build: Callable[[Path], Call]
    needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      what: in words.
      prepare: writes the weights into a folder.
      sides: by name; ratios are to the first.
      flops: of a call, 2 x multiply-adds; None where they are not counted.
      cold: timed once, from the first call on, so that compiling is part of it.
    """

    what: str
    prepare: Callable[[Path], None]
    sides: Mapping[str, Side]
    flops: Callable[[], float] | None = None
    cold: bool = False


def random_params(module: Any, *inputs: Any) -> Any:
    """Normal weights of a standard deviation that keeps activations finite, in float32."""
    import jax

    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.02, s.shape).astype(np.float32), shapes)


def torch_arrays(*arrays: Any) -> list[Any]:
    """Arrays as torch takes them, channels before rows and columns."""
    import torch

    moved = (np.moveaxis(a, -1, 1) if a.ndim == 4 else a for a in map(np.asarray, arrays))
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in moved]


# --- one evaluation of a UNet of the paper's


def unet_inputs(batch: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, timesteps and contexts."""
    rng = np.random.default_rng(1)
    latents = rng.normal(size=(batch, 64, 64, 4)).astype(np.float32)
    context = rng.normal(size=(batch, 77, 1024)).astype(np.float32)
    return latents, np.linspace(3, 700, batch, dtype=np.float32), context


def write_unet(folder: Path, config: Any) -> None:
    """Random weights, in diffusers' layout."""
    from ldm_scaling.checkpoint.diffusers import export_unet
    from ldm_scaling.unet import UNet

    size, tokens = config.sample_size, (1, 3, config.context_size)
    latents = np.zeros((1, size, size, config.in_channels), np.float32)
    inputs = (latents, np.zeros(1, np.float32), np.zeros(tokens, np.float32))
    export_unet(config, random_params(UNet(config), *inputs), folder)


def compiled(build: Callable[..., Call]) -> Callable[[Path], Call]:
    """The side of diffusers, through torch.compile."""
    return functools.partial(build, compiled=True)


def diffusers_unet(folder: Path, compiled: bool = False) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_grad_enabled(False)
    model = UNet2DConditionModel.from_pretrained(folder).eval()
    return torch.compile(model) if compiled else model


def evaluation_diffusers(folder: Path, compiled: bool = False) -> Call:
    model, inputs = diffusers_unet(folder, compiled), torch_arrays(*unet_inputs())
    return lambda: model(*inputs).sample


def evaluation_ours(folder: Path, kernel: str = "auto") -> Call:
    import jax

    from ldm_scaling.checkpoint.diffusers import import_unet
    from ldm_scaling.unet import UNet

    config, params = import_unet(folder)
    apply = jax.jit(UNet(dataclasses.replace(config, attention=kernel)).apply)
    arrays = jax.device_put(({"params": params}, *unet_inputs()))
    return lambda: jax.block_until_ready(apply(*arrays))


def evaluation(width: int) -> Case:
    def prepare(folder: Path) -> None:
        from ldm_scaling.unet import unet_config

        write_unet(folder, unet_config(width))

    def flops() -> float:
        from ldm_scaling.unet import unet_config
        from ldm_scaling.unet.flops import forward_flops

        return float(forward_flops(unet_config(width), 77, 2))

    return Case(
        f"evaluation, c = {width}, 64x64, batch 2",
        prepare,
        {
            "diffusers": Side(evaluation_diffusers, TORCH),
            "torch.compile": Side(functools.partial(evaluation_diffusers, compiled=True), TORCH),
            "ldm_scaling": Side(evaluation_ours),
        },
        flops,
    )


def attention() -> Case:
    whole = evaluation(64)
    kernels = ("xla", "chunked")
    sides = {k: Side(functools.partial(evaluation_ours, kernel=k)) for k in kernels}
    return dataclasses.replace(whole, what=f"{whole.what}, attention by", sides=sides)


# --- guided sampling


def sampling_diffusers(folder: Path, compiled: bool = False) -> Call:
    import torch
    from diffusers import DDIMScheduler

    from ldm_scaling.diffusion import Schedule

    model = diffusers_unet(folder, compiled)
    scheduler = DDIMScheduler(  # as Stable Diffusion's
        **Schedule.from_name("scaled_linear").to_config(),
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    x, _, context = torch_arrays(*unet_inputs(1))
    both = torch.cat([torch.zeros_like(context), context])

    def call() -> object:
        scheduler.set_timesteps(STEPS)
        latents = x
        for t in scheduler.timesteps:
            plain, told = model(torch.cat([latents] * 2), t, both).sample.chunk(2)
            noise = plain + GUIDANCE * (told - plain)
            latents = scheduler.step(noise, t, latents).prev_sample
        return latents

    return call


def sampling_ours(folder: Path) -> Call:
    import jax

    from ldm_scaling import diffusion
    from ldm_scaling.checkpoint.diffusers import import_unet
    from ldm_scaling.unet import UNet

    config, params = import_unet(folder)
    schedule = diffusion.Schedule.from_name("scaled_linear")
    steps = diffusion.sampler_table("ddim", schedule, STEPS, spacing="leading")
    table = diffusion.pad(steps, STEPS)
    x, _, context = unet_inputs(1)
    rates, nothing = np.full(1, GUIDANCE, np.float32), jax.numpy.zeros(context.shape)
    keys = jax.random.split(jax.random.key(0), 1)

    @jax.jit
    def draw(params, context, x):
        def model_fn(x, t, context):
            return UNet(config).apply({"params": params}, x, t, context)

        guided = diffusion.classifier_free_guidance(model_fn, rates, nothing)
        denoise = diffusion.to_denoiser(guided, context, schedule, config.prediction_type)
        return diffusion.sample(denoise, table, x, keys)

    arrays = jax.device_put((params, context, x))
    return lambda: jax.block_until_ready(draw(*arrays))


def sampling() -> Case:
    of_one = evaluation(64)
    return Case(
        f"1 latent, c = 64, {STEPS} guided steps of DDIM, with compiling",
        of_one.prepare,
        {
            "diffusers": Side(sampling_diffusers, TORCH),
            "torch.compile": Side(compiled(sampling_diffusers), TORCH),
            "ldm_scaling": Side(sampling_ours),
        },
        lambda: STEPS * of_one.flops(),  # two evaluations a step
        cold=True,
    )
