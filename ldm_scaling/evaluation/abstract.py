"""Sampling without weights: its own program, lowered for devices that need not exist."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ldm_scaling.aot import record_of, topology_devices
from ldm_scaling.diffusion import Schedule, ddim, pad
from ldm_scaling.encoders import Autoencoder, AutoencoderConfig
from ldm_scaling.evaluation.generate import drawing_program
from ldm_scaling.records import Record
from ldm_scaling.sharding import (
    batch_sharding,
    check_batch,
    make_mesh,
    param_shardings,
    replicated,
)
from ldm_scaling.unet import UNet, unet_config
from ldm_scaling.unet.flops import forward_flops


def sampling_record(
    config: ConfigDict, topology: str, *, slices: int = 1, steps: int = 50, batch_size: int
) -> Record:
    """Compiles drawing images, guided, by the scan of the library; records what it needs.

    Args:
      config: of the pretraining run whose model draws, as `configs/pretrain.py` makes it.
      topology, slices: where, see `ldm_scaling.aot`.
      steps: of the sampler, each with two evaluations an image.
      batch_size: images drawn at a time, on all chips.

    Raises:
      ValueError: unknown topology, or a mesh or batch that does not fit it.
      MemoryError: the program does not fit into the chips' memory.
    """
    mesh = make_mesh(**config.mesh, devices=topology_devices(topology, slices))
    check_batch(mesh, batch_size)
    decoding = AutoencoderConfig()
    unet = unet_config(
        config.width,
        sample_size=config.data.image_size // decoding.factor,
        **{**config.model, "remat": "none"},
    )
    size, key = config.data.image_size, jax.random.key(0)
    latents = jnp.zeros((1, unet.sample_size, unet.sample_size, unet.in_channels))
    context = (config.max_tokens, unet.context_size)
    shapes = {
        "unet": jax.eval_shape(
            UNet(unet).init, key, latents, jnp.zeros(1), jnp.zeros((1, *context))
        ),
        "autoencoder": jax.eval_shape(
            Autoencoder(decoding).init, key, jnp.zeros((1, size, size, 3))
        ),
    }
    params = {name: tree["params"] for name, tree in shapes.items()}
    everywhere = replicated(mesh)

    def placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    def examples(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=batch_sharding(mesh))

    schedule = Schedule.from_name(config.diffusion.schedule)
    table = pad(ddim(schedule, steps, spacing=config.diffusion.spacing), steps)
    lowered = drawing_program(unet, decoding, schedule, mesh).lower(
        jax.tree.map(placed, params, param_shardings(mesh, params)),
        examples(*context),
        examples(*context),
        examples(),
        examples(dtype=jnp.int32),
        jax.tree.map(lambda column: placed(jnp.asarray(column), everywhere), table),
        jax.ShapeDtypeStruct((), jnp.uint32, sharding=everywhere),
    )
    return record_of(
        lowered,
        config,
        mesh,
        topology=topology,
        slices=slices,
        model_flops=2.0 * forward_flops(unet, config.max_tokens) * steps * batch_size,
        point={
            "family": config.family,
            "width": config.width,
            "program": "sample",
            "steps": steps,
            "batch_size": batch_size,
        },
    )
