"""The transformer that both towers of CLIP share (arXiv 2103.00020), named as transformers' is.

Norms come before each branch. The sum of the branches is kept in float32 whatever the compute
dtype: a few of its features grow large, and half precision would round the others away. DINOv2 is
made of the same parts.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ldm_scaling.naming import check_name

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's own weights
    "gelu": lambda x: nn.gelu(x, approximate=False),  # most of OpenCLIP's
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Size of a tower; fields carry the names of transformers' config.json.

    Attributes:
      hidden_act: "quick_gelu" or "gelu". Weights run with the other one give plausible nonsense.
      dtype: of the products, "float32" or "bfloat16"; what comes out is float32.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self):
        check_name("hidden_act", self.hidden_act, ACTIVATIONS)
        check_name("dtype", self.dtype, ("float32", "bfloat16"))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads}: must divide "
                f"hidden_size={self.hidden_size}"
            )


def tower_norm(config: TowerConfig, name: str) -> nn.LayerNorm:
    """A layer norm of the tower; the variance is taken about the mean, as PyTorch does."""
    return nn.LayerNorm(config.layer_norm_eps, use_fast_variance=False, name=name)


def attend(
    q: Float[Array, "B Q D"],
    k: Float[Array, "B K D"],
    v: Float[Array, "B K D"],
    heads: int,
    visible: Bool[Array, "#B Q K"] | None = None,
) -> Float[Array, "B Q D"]:
    """softmax(q k^T / sqrt(S)) v of each head of S = D / heads features; the softmax in float32.

    `visible` says which keys (last axis) each query sees; None: all.
    """
    split_q, split_k, split_v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", split_q * split_q.shape[-1] ** -0.5, split_k)
    logits = logits.astype(jnp.float32)
    if visible is not None:
        logits = jnp.where(visible[:, None], logits, jnp.finfo(logits.dtype).min)
    weights = nn.softmax(logits).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, split_v).reshape(q.shape)


class _Attention(nn.Module):
    config: TowerConfig

    @nn.compact
    def __call__(self, x, visible):
        heads = self.config.num_attention_heads

        def dense(name):
            return nn.Dense(x.shape[-1], dtype=self.config.dtype, name=name)

        q, k, v = (dense(name)(x) for name in ("q_proj", "k_proj", "v_proj"))
        return dense("out_proj")(attend(q, k, v, heads, visible))


class TowerMlp(nn.Module):
    """The feed-forward layer of a tower."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """In the compute dtype."""
        config = self.config
        y = nn.Dense(config.intermediate_size, dtype=config.dtype, name="fc1")(x)
        y = ACTIVATIONS[config.hidden_act](y)
        return nn.Dense(config.hidden_size, dtype=config.dtype, name="fc2")(y)


class _Layer(nn.Module):
    config: TowerConfig

    @nn.compact
    def __call__(self, x, visible):
        config = self.config
        y = tower_norm(config, "layer_norm1")(x)
        x = x + _Attention(config, name="self_attn")(y, visible)
        return x + TowerMlp(config, name="mlp")(tower_norm(config, "layer_norm2")(x))


class TowerEncoder(nn.Module):
    """The layers of a tower, without the norms before and after them."""

    config: TowerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], visible: Bool[Array, "#B Q L"] | None = None
    ) -> list[Any]:
        """Embedded tokens -> states [B, L, D] after 0, 1, ... all layers, float32.

        Args:
          x: tokens or patches with their positions added.
          visible: which keys (last axis) each query sees; None: all.
        """
        states = [x.astype(jnp.float32)]
        for i in range(self.config.num_hidden_layers):
            states.append(_Layer(self.config, name=f"layers_{i}")(states[-1], visible))
        return states
