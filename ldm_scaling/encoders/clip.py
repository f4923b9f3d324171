"""CLIP's text encoder (arXiv 2103.00020), OpenAI's and OpenCLIP's, with transformers' names.

Parameters are those of `CLIPTextModelWithProjection`, or of `CLIPTextModel` where there is no
projection. The defaults of `ClipTextConfig` are ViT-L/14's text encoder, that of Stable Diffusion
1.x. Stable Diffusion 2.x conditions on the penultimate layer of OpenCLIP ViT-H/14, normalised by
the norm that follows the last one; diffusers stores it as an encoder of 23 layers, and a whole one
of 24 gives the same with `skipped_layers=1`.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ldm_scaling.encoders.clip_tower import TowerConfig, TowerEncoder, tower_norm
from ldm_scaling.types import Context, TokenIds

OLD_END_TOKEN = 2
"""`eos_token_id` of configs made before transformers 4.31, which is not the token's number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(TowerConfig):
    """Size of a CLIP text encoder, and which of its states are the context.

    Attributes:
      projection_dim: features of the embedding that images are compared with; None: the weights
        have no projection.
      eos_token_id: the pooled state is that of the first such token. 2, as old configs have it,
        stands for the largest number in a prompt, which the end has in CLIP's own vocabulary.
      skipped_layers: of the last layers, which the context does not see: 0 in Stable Diffusion
        1.x, 1 for the penultimate state. The pooled state has passed all layers.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    projection_dim: int | None = None
    eos_token_id: int = 49407
    skipped_layers: int = 0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.skipped_layers <= self.num_hidden_layers:
            raise ValueError(
                f"skipped_layers={self.skipped_layers}: there are "
                f"num_hidden_layers={self.num_hidden_layers}"
            )


class ClipTextOutput(NamedTuple):
    """What a prompt becomes.

    Attributes:
      context: states of the chosen layer after the final norm [B, L, D], also at padding.
      pooled: last state at the end of the prompt after the final norm [B, D]; [B, P] where the
        weights have a projection. Not of unit length.
    """

    context: Context
    pooled: Float[Array, "B P"]


class _Embeddings(nn.Module):
    config: ClipTextConfig

    @nn.compact
    def __call__(self, token_ids):
        config, width = self.config, self.config.hidden_size
        tokens = nn.Embed(config.vocab_size, width, name="token_embedding")(token_ids)
        positions = nn.Embed(config.max_position_embeddings, width, name="position_embedding")
        return tokens + positions(jnp.arange(token_ids.shape[1]))[None]


class ClipTextTower(nn.Module):
    """The text encoder up to its final norm: transformers' `text_model`."""

    config: ClipTextConfig

    @nn.compact
    def __call__(
        self, token_ids: TokenIds, mask: Int[Array, "B L"] | Bool[Array, "B L"] | None = None
    ) -> tuple[Context, Float[Array, "B D"]]:
        """As `ClipText`, the pooled state not yet projected."""
        config = self.config
        if token_ids.shape[1] > config.max_position_embeddings:
            raise ValueError(
                f"token_ids.shape={token_ids.shape}: at most "
                f"{config.max_position_embeddings} tokens have a position"
            )
        visible = jnp.tril(jnp.ones((token_ids.shape[1],) * 2, bool))[None]  # [1, query, key]
        if mask is not None:
            visible = visible & (mask > 0)[:, None, :]
        x = _Embeddings(config, name="embeddings")(token_ids)
        states = TowerEncoder(config, name="encoder")(x, visible)
        norm = tower_norm(config, "final_layer_norm")
        context = norm(states[-1 - config.skipped_layers])
        last = norm(states[-1]) if config.skipped_layers else context
        end = prompt_end(token_ids, config.eos_token_id)
        return context, jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]


class ClipText(nn.Module):
    """CLIP's text encoder; a token sees those before it, and itself."""

    config: ClipTextConfig

    @nn.compact
    def __call__(
        self, token_ids: TokenIds, mask: Int[Array, "B L"] | Bool[Array, "B L"] | None = None
    ) -> ClipTextOutput:
        """Token ids [B, L] -> context and pooled state, float32.

        Args:
          token_ids: with start and end tokens; L may be less than there are positions.
          mask: 1 = token, 0 = padding, which then no token sees. None, as in Stable Diffusion:
            padding is read as tokens are, by what follows it.

        Raises:
          ValueError: more tokens than there are positions.
        """
        context, pooled = ClipTextTower(self.config, name="text_model")(token_ids, mask)
        size, dtype = self.config.projection_dim, self.config.dtype
        if size is not None:
            project = nn.Dense(size, use_bias=False, dtype=dtype, name="text_projection")
            pooled = project(pooled).astype(jnp.float32)
        return ClipTextOutput(context, pooled)


def prompt_end(token_ids: TokenIds, eos_token_id: int) -> Int[Array, "B"]:
    """Position of the end of each prompt; padding may repeat the end token, so of its first."""
    is_end = token_ids if eos_token_id == OLD_END_TOKEN else token_ids == eos_token_id
    return jnp.argmax(is_end, axis=1)
