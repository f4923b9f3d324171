"""BERT text encoder (arXiv 1810.04805), with the parameter names of transformers' `BertModel`.

MiniLM sentence encoders are BERTs of another size; `BertConfig()` is all-MiniLM-L6-v2.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ldm_scaling.types import Context, TokenIds


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Size of a BERT; fields carry the names of transformers' config.json."""

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads}: must divide "
                f"hidden_size={self.hidden_size}"
            )


def sentence_embedding(
    hidden: Context, mask: Int[Array, "B L"] | Bool[Array, "B L"]
) -> Float[Array, "B D"]:
    """Unit-length mean of the unmasked tokens: sentence-transformers' mean pooling + normalise."""
    weight = mask.astype(hidden.dtype)
    mean = jnp.einsum("bld,bl->bd", hidden, weight)
    mean = mean / jnp.maximum(weight.sum(1, keepdims=True), 1e-9)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


class _Embeddings(nn.Module):
    config: BertConfig

    @nn.compact
    def __call__(self, token_ids):
        config, width = self.config, self.config.hidden_size
        words = nn.Embed(config.vocab_size, width, name="word_embeddings")(token_ids)
        positions = nn.Embed(config.max_position_embeddings, width, name="position_embeddings")
        segments = nn.Embed(config.type_vocab_size, width, name="token_type_embeddings")
        position = positions(jnp.arange(token_ids.shape[1]))[None]
        # A prompt is one segment, so every token is of type 0.
        x = words + position + segments(jnp.zeros((1, 1), jnp.int32))
        return nn.LayerNorm(config.layer_norm_eps, name="LayerNorm")(x)


class _SelfAttention(nn.Module):
    config: BertConfig

    @nn.compact
    def __call__(self, x, mask):
        heads = self.config.num_attention_heads
        q, k, v = (
            nn.Dense(x.shape[-1], name=name)(x).reshape(*x.shape[:2], heads, -1)
            for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        logits = jnp.where(mask[:, None, None, :] > 0, logits, jnp.finfo(logits.dtype).min)
        return jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits), v).reshape(x.shape)


class _Output(nn.Module):
    """Projection, shortcut, then norm: BERT normalises after each sum."""

    config: BertConfig

    @nn.compact
    def __call__(self, x, shortcut):
        x = nn.Dense(self.config.hidden_size, name="dense")(x)
        return nn.LayerNorm(self.config.layer_norm_eps, name="LayerNorm")(x + shortcut)


class _Attention(nn.Module):
    config: BertConfig

    @nn.compact
    def __call__(self, x, mask):
        attended = _SelfAttention(self.config, name="self")(x, mask)
        return _Output(self.config, name="output")(attended, x)


class _Intermediate(nn.Module):
    config: BertConfig

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.config.intermediate_size, name="dense")(x)
        return nn.gelu(x, approximate=False)


class _Layer(nn.Module):
    config: BertConfig

    @nn.compact
    def __call__(self, x, mask):
        x = _Attention(self.config, name="attention")(x, mask)
        return _Output(self.config, name="output")(
            _Intermediate(self.config, name="intermediate")(x), x
        )


class _Encoder(nn.Module):
    config: BertConfig

    @nn.compact
    def __call__(self, x, mask):
        for i in range(self.config.num_hidden_layers):
            x = _Layer(self.config, name=f"layer_{i}")(x, mask)
        return x


class Bert(nn.Module):
    """BERT without the pooler, which MiniLM's sentence embedding does not use."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, token_ids: TokenIds, mask: Int[Array, "B L"] | Bool[Array, "B L"]
    ) -> Context:
        """Token ids and mask (1 = token, 0 = padding) [B, L] -> last hidden states [B, L, D].

        States at padding are meaningless: multiply by the mask before use.

        Raises:
            ValueError: more tokens than there are positions.
        """
        if token_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"token_ids.shape={token_ids.shape}: at most "
                f"{self.config.max_position_embeddings} tokens have a position"
            )
        x = _Embeddings(self.config, name="embeddings")(token_ids)
        return _Encoder(self.config, name="encoder")(x, mask)
