"""Images from captions: one program per architecture, whatever the sampler, steps and guidance.

An image is a function of the weights, its caption, the sampler and (seed, example id). The size of
the batch it was drawn in and the number of devices change nothing but rounding.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from ldm_scaling.diffusion import (
    SamplerTable,
    Schedule,
    check_guidance_rate,
    classifier_free_guidance,
    initial_noise,
    pad,
    sample,
    to_denoiser,
)
from ldm_scaling.encoders import Autoencoder, AutoencoderConfig
from ldm_scaling.evaluation.model import Model
from ldm_scaling.sharding import (
    check_batch,
    make_mesh,
    param_shardings,
    put_batch,
    replicated,
    within,
)
from ldm_scaling.types import Context, Params
from ldm_scaling.unet import UNet, UNetConfig


def example_keys(seed: int | jax.Array, example_ids: Int[jax.Array, "B"]) -> jax.Array:
    """One typed key per example: fold_in(key(seed), example_id). [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), example_ids)


class Generator:
    """Draws images with one model, by one program unless bucket or context length change.

    Models of one architecture (checkpoints along a training, say) share the program.

    Attributes:
      model: what it draws with.
      batch_size: images drawn at a time.
    """

    def __init__(self, model: Model, *, batch_size: int = 64, mesh: Mesh | None = None):
        """Places the weights on the mesh.

        Args:
          model: weights and what they mean.
          batch_size: images drawn at a time, a multiple of the mesh's batch devices.
          mesh: default: the first device alone.
        """
        mesh = mesh or make_mesh(devices=jax.devices()[:1])
        check_batch(mesh, batch_size)
        self.model, self.batch_size, self._mesh = model, batch_size, mesh
        self._params = jax.device_put(model.params, param_shardings(mesh, model.params))
        self._draw = drawing_program(model.unet, model.autoencoder, model.schedule, mesh)

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.model.unet.sample_size * self.model.autoencoder.factor

    def __call__(
        self,
        context: Float[np.ndarray, "N L D"],
        unconditional_context: Float[np.ndarray, "#N L D"],
        example_ids: Int[np.ndarray, "N"],
        table: SamplerTable,
        *,
        guidance: float | Float[np.ndarray, "N"] = 7.5,
        seed: int = 0,
        bucket: int | None = None,
        progress: str = "",
    ) -> UInt8[np.ndarray, "N H W 3"]:
        """Draws one image per context.

        Args:
          context: encoded captions, see `TextEncoder`.
          unconditional_context: what guidance leads away from, the encoded empty caption or a
            negative prompt; one for all or one per image.
          example_ids: what the noise of an image is derived from, with `seed`.
          table: the sampler's steps, see `ldm_scaling.diffusion.solvers`.
          guidance: rate, one for all or one per image; 1 is none.
          seed: of the initial and the step noise.
          bucket: rows the table is padded to; default `solvers.pad`'s.
          progress: label of a progress bar over batches; "" for none.

        Raises:
          ValueError: guidance is not finite, or there is nothing to draw.
        """
        check_guidance_rate(guidance)
        if len(context) == 0:
            raise ValueError("context: empty; drawing needs at least 1 caption")
        padded = pad(table, bucket)
        rates = np.broadcast_to(np.asarray(guidance, np.float32), (len(context),))
        # Always one per image, so that there is one program.
        unconditional = np.broadcast_to(unconditional_context, context.shape)
        constants = jax.device_put((padded, np.uint32(seed)), replicated(self._mesh))
        images: list[np.ndarray] = []
        ahead: jax.Array | None = None
        for rows in tqdm(list(self._batches(len(context))), progress, disable=not progress):
            ids = example_ids[rows].astype(np.int32)
            examples = (context[rows], unconditional[rows], rates[rows], ids)
            drawn = self._draw(self._params, *put_batch(self._mesh, examples), *constants)
            if ahead is not None:  # fetched while the next batch is computed
                images.append(np.asarray(ahead))
            ahead = drawn
        images.append(np.asarray(ahead))
        return np.concatenate(images)[: len(context)]

    def _batches(self, count: int) -> Iterator[np.ndarray]:
        """Indices of full batches; the last one repeats its last example, and is cut after."""
        for start in range(0, count, self.batch_size):
            yield np.minimum(np.arange(start, start + self.batch_size), count - 1)


@functools.lru_cache(maxsize=16)
def drawing_program(
    unet_config: UNetConfig, decoding: AutoencoderConfig, schedule: Schedule, mesh: Mesh
) -> Any:
    """(params, context, unconditional context, rate, example_ids, table, seed) -> uint8 images."""
    # Any: linen's `apply` is typed to return the changed collections, too.
    unet: Any = UNet(unet_config)
    autoencoder: Any = Autoencoder(decoding)
    size, channels = unet_config.sample_size, unet_config.in_channels

    def draw(
        params: Params,
        context: Context,
        unconditional_context: Context,
        rate: Float[jax.Array, "B"],
        example_ids: Int[jax.Array, "B"],
        table: SamplerTable,
        seed: jax.Array,
    ) -> UInt8[jax.Array, "B H W 3"]:
        def model_fn(x_t, t, context):
            return unet.apply({"params": params["unet"]}, x_t, t, context)

        guided = classifier_free_guidance(model_fn, rate, unconditional_context)
        denoise = to_denoiser(guided, context, schedule, unet_config.prediction_type)
        keys = example_keys(seed, example_ids)
        x_T = initial_noise(keys, (size, size, channels))
        latents = sample(denoise, table, x_T, keys)
        latents = latents / decoding.scaling_factor + decoding.shift_factor
        images = autoencoder.apply({"params": params["autoencoder"]}, latents, method="decode")
        return jnp.round(jnp.clip((images + 1) * 127.5, 0, 255)).astype(jnp.uint8)

    return jax.jit(within(mesh, draw))
