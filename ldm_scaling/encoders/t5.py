"""T5's encoder (arXiv 1910.10683; v1.1: arXiv 2002.05202), named as transformers' `T5EncoderModel`.

What differs from other transformers: norms without mean and bias, logits that are not scaled (the
initial weights take care of it), and positions that enter as a bias on the logits alone, learned by
the first block for all. The defaults of `T5Config` are T5 v1.1 large. As in CLIP, the sum of the
branches stays in float32: T5's grows beyond what half precision resolves.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ldm_scaling.naming import check_name
from ldm_scaling.types import Context, TokenIds


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Size of a T5 encoder; fields carry the names of transformers' config.json.

    Attributes:
      d_kv: features of a head; heads need not add up to `d_model`.
      feed_forward_proj: "gated-gelu" (v1.1) or "relu" (v1.0).
      dtype: of the products, "float32" or "bfloat16"; what comes out is float32.
    """

    vocab_size: int = 32128
    d_model: int = 1024
    d_kv: int = 64
    d_ff: int = 2816
    num_layers: int = 24
    num_heads: int = 16
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"
    dtype: str = "float32"

    def __post_init__(self):
        check_name("feed_forward_proj", self.feed_forward_proj, ("gated-gelu", "relu"))
        check_name("dtype", self.dtype, ("float32", "bfloat16"))
        if self.relative_attention_num_buckets % 4:
            raise ValueError(
                f"relative_attention_num_buckets={self.relative_attention_num_buckets}: must be a "
                "multiple of 4: half are for each direction, half of those for near tokens"
            )


def relative_buckets(
    length: int, buckets: int = 32, max_distance: int = 128
) -> Int[np.ndarray, "L L"]:
    """The bucket of each pair (query, key), by the key's distance from the query.

    Keys at or before the query share one half of the buckets, later ones the other. In each half
    the nearest distances have buckets of their own, farther ones share them on a logarithmic scale
    that ends at `max_distance` (arXiv 1910.10683, section 2.1).
    """
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    half, near = buckets // 2, buckets // 4
    size = np.abs(distance)
    # In float32 as T5 was trained, so that a distance on an edge falls to the same side.
    octaves = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(near))
    far = near + (octaves / np.float32(np.log(max_distance / near)) * (half - near)).astype(int)
    return np.where(size < near, size, np.minimum(far, half - 1)) + half * (distance > 0)


def _norm(config: T5Config, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(config.layer_norm_epsilon, name=name)


def _dense(config: T5Config, size: int, name: str) -> nn.Dense:
    return nn.Dense(size, use_bias=False, dtype=config.dtype, name=name)


class _Attention(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x, mask, bias):
        config, length = self.config, x.shape[1]
        heads = (config.num_heads, config.d_kv)
        q, k, v = (
            _dense(config, config.num_heads * config.d_kv, name)(x).reshape(*x.shape[:2], *heads)
            for name in ("q", "k", "v")
        )
        if bias is None:  # the first block, which learns it for all
            table = nn.Embed(
                config.relative_attention_num_buckets,
                config.num_heads,
                name="relative_attention_bias",
            )
            found = relative_buckets(
                length,
                config.relative_attention_num_buckets,
                config.relative_attention_max_distance,
            )
            bias = table(jnp.asarray(found)).transpose(2, 0, 1)[None]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
        logits = logits + jnp.broadcast_to(bias, logits.shape)
        logits = jnp.where(mask[:, None, None, :] > 0, logits, jnp.finfo(logits.dtype).min)
        weights = nn.softmax(logits).astype(v.dtype)
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], -1)
        return _dense(config, config.d_model, "o")(attended), bias


class _SelfAttentionBranch(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x, mask, bias):
        normed = _norm(self.config, "layer_norm")(x)
        y, bias = _Attention(self.config, name="SelfAttention")(normed, mask, bias)
        return x + y, bias


class _FeedForward(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x):
        config = self.config
        if config.feed_forward_proj == "relu":
            hidden = nn.relu(_dense(config, config.d_ff, "wi")(x))
        else:  # "gelu" means its tanh approximation in T5
            hidden = nn.gelu(_dense(config, config.d_ff, "wi_0")(x), approximate=True)
            hidden = hidden * _dense(config, config.d_ff, "wi_1")(x)
        return _dense(config, config.d_model, "wo")(hidden)


class _FeedForwardBranch(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x):
        normed = _norm(self.config, "layer_norm")(x)
        return x + _FeedForward(self.config, name="DenseReluDense")(normed)


class _Block(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x, mask, bias):
        x, bias = _SelfAttentionBranch(self.config, name="layer_0")(x, mask, bias)
        return _FeedForwardBranch(self.config, name="layer_1")(x), bias


class _Encoder(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x, mask):
        bias = None
        for i in range(self.config.num_layers):
            x, bias = _Block(self.config, name=f"block_{i}")(x, mask, bias)
        return _norm(self.config, "final_layer_norm")(x)


class T5(nn.Module):
    """T5's encoder; every token sees every other."""

    config: T5Config

    @nn.compact
    def __call__(
        self, token_ids: TokenIds, mask: Int[Array, "B L"] | Bool[Array, "B L"]
    ) -> Context:
        """Token ids and mask (1 = token, 0 = padding) [B, L] -> last states [B, L, D], float32.

        Any length runs. States at padding are meaningless: multiply by the mask before use.
        """
        config = self.config
        x = nn.Embed(config.vocab_size, config.d_model, name="shared")(token_ids)
        return _Encoder(config, name="encoder")(x, mask)
