"""The frozen parts of text-to-image training: pixels to latents, captions to context."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ldm_scaling.encoders import (
    Autoencoder,
    AutoencoderConfig,
    TextConfig,
    context_size,
    encode_text,
)
from ldm_scaling.types import Batch, Context, Images, Params, TokenIds

Tokenize: TypeAlias = Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]
"""(prompts, max_tokens) -> (ids, mask), int32 [B, max_tokens]; an `encoders.Tokenizer` is one."""


@dataclasses.dataclass(frozen=True)
class FrozenEncoders:
    """Modules and tokenizer; their parameters travel beside, as `params` of each method.

    Attributes:
      autoencoder: config; its `scaling_factor` and `shift_factor` make latents of unit size.
      text_encoder: config of any kind.
      tokenizer: of the text encoder.
      max_tokens: length that every caption is padded or cut to.

    `params` is always {"autoencoder": tree, "text_encoder": tree}.
    """

    autoencoder: AutoencoderConfig
    text_encoder: TextConfig
    tokenizer: Tokenize
    max_tokens: int

    @property
    def context_size(self) -> int:
        """Features of a context token."""
        return context_size(self.text_encoder)

    def tokenize(self, captions: Iterable[str]) -> dict[str, np.ndarray]:
        """Captions -> "token_ids", "token_mask", int32 [B, max_tokens]."""
        ids, mask = self.tokenizer([str(caption) for caption in captions], self.max_tokens)
        return {"token_ids": ids, "token_mask": mask}

    def encode_images(
        self, params: Params, images: Images | UInt8[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
        """Images in [-1, 1], or uint8 -> mean and standard deviation of their latents, unscaled."""
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 127.5 - 1
        module: Any = Autoencoder(self.autoencoder)
        mean, logvar = module.apply({"params": params["autoencoder"]}, images, method="encode")
        return mean, jnp.exp(0.5 * logvar)

    def encode_text(self, params: Params, token_ids: TokenIds, token_mask: TokenIds) -> Context:
        """Token ids -> context [B, L, D]; what it holds at padding see `encoders.text`."""
        return encode_text(self.text_encoder, params["text_encoder"], token_ids, token_mask)

    def encode_batch(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """ "image", "token_ids", "token_mask" -> "latent_mean", "latent_std", "context"."""
        mean, std = self.encode_images(params, batch["image"])
        context = self.encode_text(params, batch["token_ids"], batch["token_mask"])
        return {"latent_mean": mean, "latent_std": std, "context": context}

    def unconditional_context(self, params: Params) -> Any:
        """The context [L, D] of the empty prompt, float32 numpy."""
        tokens = self.tokenize([""])
        context = jax.jit(self.encode_text)(params, tokens["token_ids"], tokens["token_mask"])
        return np.asarray(context[0], np.float32)
