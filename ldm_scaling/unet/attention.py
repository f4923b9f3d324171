"""Multi-head attention and its kernels.

`xla` writes the whole score matrix and leaves the rest to the compiler. `chunked` computes the
scores of a piece of the queries at a time and recomputes them in the backward pass, so neither
pass holds the whole matrix; on a CPU a piece is also a single head of a single example, because
XLA's CPU backend runs batched products of small heads slowly. *Measured* on two
EPYC cores, one evaluation of the c = 64 network on two 64x64 latents: 11.1 s with
`jax.nn.dot_product_attention`, 7.5 s with `xla`, 1.7 s with `chunked`.

`flash` is JAX's splash-attention kernel for TPUs, whose scores never leave the core.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_scaling.placement import BATCH_AXES, on_each_device
from ldm_scaling.unet.layers import DenseFromHeads, DenseToHeads

CPU_QUERIES = 512  # queries of a piece on a CPU: its scores stay in the cache
ACCELERATOR_QUERIES = 1024  # and elsewhere; a number of queries, so that batch size is no matter
AUTO_CHUNKED_SCORES = 1 << 18  # `auto` takes `chunked` or `flash` from this many scores a head on
FLASH_LANES = 128  # its blocks are multiples of these
FLASH_BLOCKS = {
    64: ((512, 4096, 1024), (512, 4096, 256)),
    128: ((512, 4096, 1024), (512, 2048, 512)),
    math.inf: ((512, 2048, 1024), (512, 1024, 512)),
}
"""Channels of a head, up to -> blocks (queries, keys, keys at a time), forward and backward.

The more keys a block has, the better: each further block of them rescales the forward pass, and
writes a gradient of the queries of its own, to be added up. The core's memory limits them. Counted
in the compiler's final schedules for v5p (4096 tokens, heads of 40; instructions for 1024 x 1024
scores): forward 4,430, and 5,480 with (1024, 2048, 512); backward 10,620, and 11,250 with
(512, 4096, 512)."""

FLASH_RESIDUALS = "flash attention"
"""The name of what the kernel keeps for its backward pass, for policies of rematerialisation."""


class Attention(nn.Module):
    """Attention from x to a context, or to x itself (arXiv:1706.03762, eq. 1).

    Attributes:
      heads: number of heads; must divide the channels of x.
      kernel: "auto", "xla", "chunked" or "flash".
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
        channels = x.shape[-1]
        if context is None:
            # Channels along the lanes, or a TPU transposes the gradients of all three projections
            # (estimated for v5p, 8 examples of 4096 tokens, 320 channels: 4.78 for 5.06 ms).
            x = context = on_each_device(_channels_minor, PartitionSpec(BATCH_AXES))(x)

        def project(name: str, inputs: Array) -> Array:
            return DenseToHeads(channels, self.heads, self.dtype, name=name)(inputs)

        q, k, v = project("to_q", x), project("to_k", context), project("to_v", context)
        y = dot_product_attention(q, k, v, self.kernel)
        return DenseFromHeads(channels, self.dtype, name="to_out_0")(y)


def dot_product_attention(
    q: Float[Array, "B N H S"],
    k: Float[Array, "B M H S"],
    v: Float[Array, "B M H S"],
    kernel: str = "auto",
) -> Float[Array, "B N H S"]:
    """softmax(q k^T / sqrt(S)) v for each example and head, the softmax in float32.

    Args:
      q, k, v: queries, keys and values, of any one float dtype.
      kernel: "xla"; "chunked"; "flash", for TPUs, and plain where its blocks do not fit; or
        "auto": on a TPU `flash`, elsewhere `chunked`, both where a head has `AUTO_CHUNKED_SCORES`
        or more (from there on it is faster and saves memory). What is done depends on the
        platform that the computation is *lowered* for, so a step compiled for a TPU on a machine
        without one gets the TPU's kernel.
    """
    scores = q.shape[1] * k.shape[1]
    if kernel == "xla" or (kernel == "auto" and scores < AUTO_CHUNKED_SCORES):
        return _plain(q, k, v)
    if kernel == "flash":
        return _flash(q, k, v)
    on_tpu = {"tpu": _flash} if kernel == "auto" else {}
    return jax.lax.platform_dependent(
        q,
        k,
        v,
        # Only q, k and v are kept for the backward pass.
        cpu=jax.checkpoint(_map_heads_and_queries),
        default=jax.checkpoint(_map_queries),
        **on_tpu,
    )


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


def _flash(q: Array, k: Array, v: Array) -> Array:
    """JAX's splash-attention kernel for TPUs, where its blocks fit; the plain product elsewhere."""
    queries, keys = q.shape[1], k.shape[1]
    if queries % FLASH_LANES or keys % FLASH_LANES:
        return _plain(q, k, v)
    heads_apart = PartitionSpec(BATCH_AXES, None, "tensor")
    return on_each_device(_splash, heads_apart)(q, k, v)


def _splash(q: Array, k: Array, v: Array, interpret: bool = False) -> Array:
    # Seconds to import, and of no use elsewhere.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    queries, keys, heads = q.shape[1], k.shape[1], q.shape[2]

    forward, backward = next(b for most, b in FLASH_BLOCKS.items() if q.shape[3] <= most)

    def blocks(suffix: str, limits: tuple[int, int, int]) -> dict[str, int]:
        names = (f"block_q{suffix}", f"block_kv{suffix}", f"block_kv{suffix}_compute")
        sizes = map(math.gcd, (queries, keys, keys), limits)
        return dict(zip(names, sizes, strict=True))

    # Tokens along the lanes: heads of 8 to 96 channels would fill a fraction of them.
    layout = splash.QKVLayout.SEQ_MINOR
    kernel = splash.make_splash_mha(
        mask=masks.MultiHeadMask([masks.FullMask((queries, keys))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(
            **blocks("", forward),
            **blocks("_dkv", backward),
            use_fused_bwd_kernel=True,
            q_layout=layout,
            k_layout=layout,
            v_layout=layout,
        ),
        residual_checkpoint_name=FLASH_RESIDUALS,
        interpret=interpret,  # for tests on a CPU
    )
    q, k, v = (x.swapaxes(1, 2) for x in (q * _scale(q), k, v))
    return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)


def _channels_minor(x: Array) -> Array:
    # Of a whole array on many devices the partitioner cannot split this: it would gather it.
    return with_layout_constraint(x, Layout(major_to_minor=(0, 1, 2)))


def _pieces(queries: int, limit: int) -> int:
    """The smallest number of equal pieces of at most `limit` queries each."""
    return next(n for n in range(1, queries + 1) if queries % n == 0 and queries // n <= limit)


def _scale(q: Array) -> Array:
    return jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
