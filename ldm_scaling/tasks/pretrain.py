"""Text-to-image latent diffusion from scratch (arXiv:2112.10752; the family's base training)."""

import fnmatch
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_scaling.diffusion import Schedule, check_prediction_type, diffusion_loss
from ldm_scaling.diffusion.randomness import derive, normal
from ldm_scaling.encoders import AutoencoderConfig
from ldm_scaling.tasks.frozen import FrozenEncoders
from ldm_scaling.types import Batch, Context, Keys, Latents, Params
from ldm_scaling.unet import UNet, UNetConfig
from ldm_scaling.unet.flops import forward_flops

CACHED_COLUMNS = ("latent_mean", "latent_std", "context")


class PretrainTask:
    """Denoise latents, given the caption or, for some examples, no caption.

    Two kinds of batches do. Online: "image" [B, H, W, 3] in [-1, 1] and "caption", which the
    frozen encoders turn into latents and context within the step. Cached: "latent_mean",
    "latent_std" [B, h, w, c] (unscaled posterior) and "context" [B, L, D], made ahead by the same
    encoders and in any precision; the posterior is still sampled anew each step.

    Args:
      config: the UNet.
      schedule: noise levels.
      autoencoder: whose latents they are (scaling_factor, shift_factor).
      unconditional: context [L, D] of the empty prompt; where nothing is run, its shape will do.
      encoders, encoder_params: for online batches; None for cached ones.
      weighting, gamma: of the loss, see `diffusion.loss_weight`.
      caption_dropout: probability that an example is trained without its caption, so that one
        network also learns the unconditional model of guidance (arXiv:2207.12598).
      spacing: of the sampler that the exported scheduler config recommends.
      family: "paper" or "micro", for records.
      companions: folder name -> folder, the parts of the exported pipeline that are not trained
        ("vae", "text_encoder", "tokenizer"); linked or copied into each export.
      index: model_index.json entries of what is not trained, but for the autoencoder's.

    Raises:
      ValueError: prediction type and schedule, or latents and UNet, do not fit.
    """

    def __init__(
        self,
        config: UNetConfig,
        schedule: Schedule,
        autoencoder: AutoencoderConfig,
        unconditional: np.ndarray | jax.ShapeDtypeStruct,
        *,
        encoders: FrozenEncoders | None = None,
        encoder_params: Params | None = None,
        weighting: str = "uniform",
        gamma: float = 5.0,
        caption_dropout: float = 0.1,
        spacing: str = "leading",
        family: str = "paper",
        companions: Mapping[str, Path] | None = None,
        index: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        check_prediction_type(config.prediction_type, schedule)
        if config.in_channels != autoencoder.latent_channels:
            raise ValueError(
                f"in_channels={config.in_channels}: the autoencoder's latents have "
                f"{autoencoder.latent_channels}"
            )
        if config.context_size != unconditional.shape[-1]:
            raise ValueError(
                f"context_size={config.context_size}: the text encoder gives "
                f"{unconditional.shape[-1]} features a token"
            )
        if not 0 <= caption_dropout < 1:
            raise ValueError(f"caption_dropout={caption_dropout}: must be in [0, 1)")
        self.config, self.schedule = config, schedule
        self.frozen: Params = {"unconditional": unconditional, **(encoder_params or {})}
        self.point: Mapping[str, Any] = {
            "task": "pretrain",
            "family": family,
            "width": config.block_out_channels[0],
        }
        self.facts: Mapping[str, Any] = {"max_tokens": unconditional.shape[0]}
        self.forward_flops = float(forward_flops(config, unconditional.shape[0]))
        self._autoencoder, self._encoders = autoencoder, encoders
        self._weighting, self._gamma = weighting, gamma
        self._caption_dropout, self._spacing = caption_dropout, spacing
        self._companions, self._index = dict(companions or {}), dict(index or {})
        self._module = UNet(config)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters of the UNet."""
        config = self.config
        x = jnp.zeros((1, config.sample_size, config.sample_size, config.in_channels))
        context = jnp.zeros((1, *self.frozen["unconditional"].shape))
        return self._module.init(key, x, jnp.zeros(1, jnp.int32), context)["params"]

    def loss(
        self, params: Params, frozen: Params, batch: Batch, keys: Keys, step: jax.Array
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """Mean weighted squared error of the prediction; see `diffusion.diffusion_loss`."""
        del step
        if self._encoders is not None:
            encoded = self._encoders.encode_batch(frozen, batch)
            batch = jax.lax.stop_gradient(encoded)
        else:  # may be stored in half precision
            batch = {name: batch[name].astype(jnp.float32) for name in CACHED_COLUMNS}
        latents = self._sample_latents(batch, keys)
        context = self._drop_captions(frozen, batch["context"], keys)

        def model_fn(x: Latents, t: jax.Array, c: Context) -> Any:
            return self._module.apply({"params": params}, x, t, c)

        losses = diffusion_loss(
            model_fn,
            self.schedule,
            self.config.prediction_type,
            latents,
            context,
            keys,
            weighting=self._weighting,
            gamma=self._gamma,
        )
        return losses.mean(), {"latent_rms": jnp.sqrt(jnp.square(latents).mean())}

    def host_batch(self, batch: Batch) -> Batch:
        """Online: images and token ids; cached: the cached columns."""
        if self._encoders is None:
            return {name: batch[name] for name in (*CACHED_COLUMNS, "example_id")}
        tokens = self._encoders.tokenize(batch["caption"])
        return {"image": batch["image"], "example_id": batch["example_id"], **tokens}

    def export(self, params: Params, folder: Path) -> None:
        """Writes unet/, scheduler/, model_index.json and the companions: a pipeline's folder."""
        from ldm_scaling.checkpoint.diffusers import export_unet
        from ldm_scaling.checkpoint.pipeline_folder import write_model_index, write_scheduler

        export_unet(self.config, params, folder / "unet")
        write_scheduler(folder, self._scheduler_config())
        for name, source in self._companions.items():
            ignore = _ignore_all_but(*_COMPANION_FILES[name])
            shutil.copytree(source, folder / name, ignore=ignore, copy_function=_link_or_copy)
        vae = {"vae": ("diffusers", "AutoencoderKL")} if "vae" in self._companions else {}
        write_model_index(
            folder,
            {
                "unet": ("diffusers", "UNet2DConditionModel"),
                "scheduler": ("diffusers", "DDIMScheduler"),
                **vae,
                **self._index,
            },
        )

    def _sample_latents(self, batch: Batch, keys: Keys) -> Latents:
        """A draw of each posterior, shifted and scaled to what the UNet sees."""
        mean = batch["latent_mean"]
        noise = normal(derive(keys, "posterior"), mean.shape[1:])
        sampled = mean + batch["latent_std"] * noise
        return (sampled - self._autoencoder.shift_factor) * self._autoencoder.scaling_factor

    def _drop_captions(self, frozen: Params, context: Context, keys: Keys) -> Context:
        if not self._caption_dropout:
            return context
        keys = derive(keys, "caption dropout")
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, self._caption_dropout))(keys)
        unconditional = jnp.broadcast_to(frozen["unconditional"][None], context.shape)
        return jnp.where(drop[:, None, None], unconditional, context)

    def _scheduler_config(self) -> dict[str, Any]:
        leading = self._spacing == "leading"
        return {
            "_class_name": "DDIMScheduler",
            **self.schedule.to_config(),
            "prediction_type": self.config.prediction_type,
            "timestep_spacing": self._spacing,
            # As Stable Diffusion: timesteps counted from 1, the last step leaves sigma(0).
            "steps_offset": int(leading),
            "set_alpha_to_one": not leading,
            "clip_sample": False,
        }


# A text encoder and its tokenizer may share a folder with each other, and with the same weights for
# other frameworks.
_COMPANION_FILES = {
    "vae": ("config.json", "diffusion_pytorch_model*.safetensors*"),
    "text_encoder": ("config.json", "model*.safetensors*"),
    "tokenizer": (
        *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.*", "merges.txt", "spiece.model"),
    ),
}


def _ignore_all_but(*patterns: str) -> Callable[[Any, list[str]], list[str]]:
    """For `shutil.copytree`: files that match a pattern are copied, nothing else."""

    def ignored(folder: Any, names: list[str]) -> list[str]:
        return [name for name in names if not any(fnmatch.fnmatch(name, kept) for kept in patterns)]

    return ignored


def _link_or_copy(source: str, target: str) -> None:
    """A hard link costs no space in each of a run's exports; other file systems get a copy."""
    try:
        os.link(os.path.realpath(source), target)  # the Hub's cache is made of symbolic links
    except OSError:
        shutil.copy2(source, target)
