"""The KL autoencoder between pixels and latents (arXiv:2112.10752, 3.1), without a critic."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_scaling.encoders.autoencoder import Autoencoder, AutoencoderConfig, sample_posterior
from ldm_scaling.types import Batch, Images, Keys, Latents, Params
from ldm_scaling.unet.flops import count_flops


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the terms beside the plain L1.

    Attributes:
      kl: of the KL divergence to N(0, 1) summed over the latents, per image value: the meaning
        that 1e-6 has in CompVis' configs.
      gradient: of the L1 between horizontal and vertical differences of neighbours: sharp edges.
      coarse: of the L1 between images averaged over 2x2 and 4x4 pixels: right colours.
    """

    kl: float = 1e-6
    gradient: float = 1.0
    coarse: float = 0.5


class AutoencoderTask:
    """Reconstruction through a narrow, slightly noisy code.

    Args:
      config: the autoencoder to train.
      loss: weights of the loss' terms.
      sample_images: [N, H, W, 3] float32 in [-1, 1], training images on which the spread of the
        latents is measured at export, for `scaling_factor`.
      family: name of the autoencoder in records.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        loss: AutoencoderLoss,
        sample_images: np.ndarray,
        family: str,
    ) -> None:
        self.config = config
        self.frozen: Params = {}
        self.point: Mapping[str, Any] = {
            "task": "autoencoder",
            "family": family,
            "width": config.block_out_channels[0],
        }
        self.facts: Mapping[str, Any] = {}
        self._loss = loss
        self._sample_images = sample_images
        self._module = Autoencoder(config)
        self._size = sample_images.shape[1]
        self.forward_flops = self._count_flops()

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters of the autoencoder."""
        images = jnp.zeros((1, self._size, self._size, self.config.in_channels))
        return self._module.init(key, images)["params"]

    def loss(
        self, params: Params, frozen: Params, batch: Batch, keys: Keys, step: jax.Array
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """L1 and its company on a sample of the posterior; see `AutoencoderLoss`.

        `batch["image"]` [B, H, W, 3] in [-1, 1]. PSNR is of values clipped to [-1, 1], peak 2.
        """
        del frozen, step
        images = batch["image"]
        mean, logvar = self._encode(params, images)
        decoded = self._decode(params, sample_posterior(mean, logvar, keys))

        error = decoded - images
        l1 = jnp.abs(error).mean()
        gradient = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
        coarse = jnp.abs(_pool(error, 2)).mean() + jnp.abs(_pool(error, 4)).mean()
        # KL(N(mean, var) || N(0, 1)), arXiv:1312.6114, appendix B.
        kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3)).mean()
        loss = (
            l1
            + self._loss.gradient * gradient
            + self._loss.coarse * coarse
            + self._loss.kl * kl / images[0].size
        )
        squared = jnp.square(jnp.clip(decoded, -1, 1) - images).mean((1, 2, 3))
        return loss, {
            "l1": l1,
            "gradient": gradient,
            "coarse": coarse,
            "kl": kl,
            "psnr": (10 * jnp.log10(4 / jnp.maximum(squared, 1e-10))).mean(),
        }

    def host_batch(self, batch: Batch) -> Batch:
        """Keeps the images and the ids."""
        return {name: np.asarray(batch[name]) for name in ("image", "example_id")}

    def scaling_factor(self, params: Params) -> float:
        """1 / (standard deviation of the latents over the sample images), so that theirs is 1.

        The mean over channels of the variance about each channel's mean, posterior noise included.
        """
        encode = jax.jit(self._encode)
        moments = [encode(params, part) for part in _parts(self._sample_images, 64)]
        mean, logvar = (np.concatenate(m).astype(np.float64) for m in zip(*moments, strict=True))
        variance = mean.var((0, 1, 2)) + np.exp(logvar).mean((0, 1, 2))
        return float(variance.mean() ** -0.5)

    def export(self, params: Params, folder: Path) -> None:
        """Writes diffusers' AutoencoderKL files, with the measured `scaling_factor`."""
        from ldm_scaling.checkpoint.diffusers import export_autoencoder

        factor = self.scaling_factor(params)
        export_autoencoder(dataclasses.replace(self.config, scaling_factor=factor), params, folder)

    def _encode(self, params: Params, images: Images) -> Any:
        return self._module.apply({"params": params}, images, method="encode")

    def _decode(self, params: Params, latents: Latents) -> Any:
        return self._module.apply({"params": params}, latents, method="decode")

    def _count_flops(self) -> float:
        size, channels = self._size, self.config.in_channels
        image = jax.ShapeDtypeStruct((1, size, size, channels), "float32")
        params = jax.eval_shape(self.init, jax.random.key(0))
        return float(count_flops(self._module.apply, {"params": params}, image))


def _pool(images: Float[Array, "B H W C"], size: int) -> Float[Array, "B h w C"]:
    """Means over size x size pixels."""
    b, h, w, c = images.shape
    return images.reshape(b, h // size, size, w // size, size, c).mean((2, 4))


def _parts(images: np.ndarray, size: int) -> list[np.ndarray]:
    return [images[i : i + size] for i in range(0, len(images), size)]
