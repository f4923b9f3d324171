"""Multi-head attention and its kernels.

`xla` writes the whole score matrix and leaves the rest to the compiler. `chunked` computes the
scores of a piece of the queries at a time and recomputes them in the backward pass, so neither
pass holds the whole matrix; on a CPU a piece is also a single head of a single example, because
XLA's CPU backend runs batched products of small heads slowly. *Measured* on two EPYC cores, one
evaluation of the c = 64 network on two 64x64 latents: 11.1 s with `jax.nn.dot_product_attention`,
7.5 s with `xla`, 1.7 s with `chunked`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_scaling.unet.layers import dense

CPU_QUERIES = 512  # queries of a piece on a CPU: its scores stay in the cache
ACCELERATOR_QUERIES = 1024  # and elsewhere; a number of queries, so that batch size is no matter
AUTO_CHUNKED_SCORES = 1 << 18  # `auto` takes `chunked` from this many scores a head on


class Attention(nn.Module):
    """Attention from x to a context, or to x itself (arXiv:1706.03762, eq. 1).

    Attributes:
      heads: number of heads; must divide the channels of x.
      kernel: "auto", "xla" or "chunked".
      dtype: of the computation; parameters and softmax are float32.
    """

    heads: int
    kernel: str = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N C"], context: Float[Array, "B M D"] | None = None
    ) -> Float[Array, "B N C"]:
        """Returns the attended values, projected; `context=None` attends to x."""
        batch, queries, channels = x.shape
        context = x if context is None else context

        def project(name: str, inputs: Array) -> Array:
            y = dense(channels, self.dtype, use_bias=False, name=name)(inputs)
            return y.reshape(batch, inputs.shape[1], self.heads, channels // self.heads)

        q, k, v = project("to_q", x), project("to_k", context), project("to_v", context)
        y = dot_product_attention(q, k, v, self.kernel)
        return dense(channels, self.dtype, name="to_out_0")(y.reshape(batch, queries, channels))


def dot_product_attention(
    q: Float[Array, "B N H S"],
    k: Float[Array, "B M H S"],
    v: Float[Array, "B M H S"],
    kernel: str = "auto",
) -> Float[Array, "B N H S"]:
    """softmax(q k^T / sqrt(S)) v for each example and head, the softmax in float32.

    Args:
      q, k, v: queries, keys and values, of any one float dtype.
      kernel: "xla", "chunked", or "auto": `chunked` where a head has `AUTO_CHUNKED_SCORES` or
        more (from there on it is faster on a CPU and saves memory elsewhere). What `chunked` does
        depends on the platform that the computation is *lowered* for, so a step compiled for a
        TPU on a machine without one gets the TPU's pieces.
    """
    scores = q.shape[1] * k.shape[1]
    if kernel == "xla" or (kernel == "auto" and scores < AUTO_CHUNKED_SCORES):
        return _plain(q, k, v)
    # Only q, k and v are kept for the backward pass, whichever platform it is for.
    chunked = functools.partial(
        jax.lax.platform_dependent, cpu=_map_heads_and_queries, default=_map_queries
    )
    return jax.checkpoint(chunked)(q, k, v)


def _plain(q: Array, k: Array, v: Array) -> Array:
    # Heads beside the batch first: on a CPU up to three times as fast as products that transpose.
    q, k, v = (x.swapaxes(1, 2) for x in (q * _scale(q), k, v))
    return _attend(q, k, v).swapaxes(1, 2)


def _attend(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T) v over the last two axes; divides the few values, not the many weights."""
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product("...ns,...ms->...nm", q, k)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    sums = weights.sum(axis=-1, keepdims=True)
    return (product("...nm,...ms->...ns", weights.astype(v.dtype), v) / sums).astype(v.dtype)


def _map_heads_and_queries(q: Array, k: Array, v: Array) -> Array:
    """One head of one example and up to `CPU_QUERIES` queries at a time."""
    batch, queries, heads, size = q.shape
    pieces = _pieces(queries, CPU_QUERIES)

    def rows(x: Array) -> Array:  # [B, N, H, S] -> [B * H, N, S]
        return x.swapaxes(1, 2).reshape(-1, x.shape[1], size)

    def head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv

        @jax.checkpoint
        def piece(q: Array) -> Array:
            return _attend(q, k, v)

        return jax.lax.map(piece, q.reshape(pieces, -1, size)).reshape(q.shape)

    y = jax.lax.map(head, (rows(q * _scale(q)), rows(k), rows(v)))
    return y.reshape(batch, heads, queries, size).swapaxes(1, 2)


def _map_queries(q: Array, k: Array, v: Array) -> Array:
    """All heads and examples, so that their sharding stays, and a piece of the queries."""
    batch, queries, heads, size = q.shape
    pieces = _pieces(queries, ACCELERATOR_QUERIES)

    @jax.checkpoint
    def piece(q: Array) -> Array:
        return _plain(q, k, v)

    q = q.reshape(batch, pieces, -1, heads, size).swapaxes(0, 1)
    return jax.lax.map(piece, q).swapaxes(0, 1).reshape(batch, queries, heads, size)


def _pieces(queries: int, limit: int) -> int:
    """The smallest number of equal pieces of at most `limit` queries each."""
    return next(n for n in range(1, queries + 1) if queries % n == 0 and queries // n <= limit)


def _scale(q: Array) -> Array:
    return jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
