"""The pieces of the UNet: time embedding, residual block, resampling, transformer.

Modules carry the names of diffusers' state dict, so that one rule converts a checkpoint. The last
layer of every residual branch starts at zero (as in the original latent diffusion code): at the
start of training a block is the identity.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Real

from ldm_scaling.placement import keep_examples_apart
from ldm_scaling.unet.attention import Attention
from ldm_scaling.unet.layers import ZEROS, DensePair, GroupNorm, conv, dense

BLOCK_OUTPUT = "block output"
"""The name of what residual blocks and transformers return, for policies of rematerialisation."""

RESNET_EPSILON = 1e-5
TRANSFORMER_EPSILON = 1e-6  # of the group norm before the projection, as in SD's checkpoints


def _block_output(x: Array) -> Array:
    return checkpoint_name(keep_examples_apart(x), BLOCK_OUTPUT)


def timestep_embedding(t: Real[Array, "B"], size: int) -> Float[Array, "B {size}"]:
    """Cosines, then sines, of t at `size / 2` frequencies from 1 down to 1/10000, float32.

    arXiv:1706.03762, section 3.5, in SD's order (diffusers: flip_sin_to_cos, no shift).
    """
    half = size // 2
    frequencies = jnp.exp(-math.log(10_000.0) / half * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nn.Module):
    """Two layers from the sinusoids of t to the embedding every residual block reads."""

    size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, sinusoids: Float[Array, "B S"]) -> Float[Array, "B T"]:
        """Returns [B, size]."""
        x = dense(self.size, self.dtype, name="linear_1")(sinusoids)
        return dense(self.size, self.dtype, name="linear_2")(nn.silu(x))


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the time embedding is added in between."""

    channels: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], time: Float[Array, "B T"]
    ) -> Float[Array, "B H W D"]:
        """Returns [B, H, W, channels]."""
        y = nn.silu(GroupNorm(self.groups, RESNET_EPSILON, self.dtype, name="norm1")(x))
        y = conv(self.channels, 3, self.dtype, name="conv1")(y)
        shift = dense(self.channels, self.dtype, name="time_emb_proj")(nn.silu(time))
        y = y + shift[:, None, None, :]
        y = nn.silu(GroupNorm(self.groups, RESNET_EPSILON, self.dtype, name="norm2")(y))
        y = conv(self.channels, 3, self.dtype, kernel_init=ZEROS, name="conv2")(y)
        if x.shape[-1] != self.channels:
            x = conv(self.channels, 1, self.dtype, name="conv_shortcut")(x)
        return _block_output(x + y)


class Downsample(nn.Module):
    """Halves height and width by a convolution of stride 2."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Returns [B, H / 2, W / 2, channels]."""
        x = conv(self.channels, 3, self.dtype, strides=(2, 2), name="conv")(x)
        return keep_examples_apart(x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W C"]:
        """Returns [B, 2 h, 2 w, channels]."""
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        x = x.reshape(batch, 2 * height, 2 * width, channels)
        return keep_examples_apart(conv(self.channels, 3, self.dtype, name="conv")(x))


class Transformer(nn.Module):
    """A transformer block over the pixels of a feature map, with a residual around it."""

    heads: int
    groups: int
    linear_projection: bool = False
    attention: str = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], context: Float[Array, "B L D"]
    ) -> Float[Array, "B H W C"]:
        """Attends from each pixel to all pixels and to the context."""
        batch, height, width, channels = x.shape
        y = GroupNorm(self.groups, TRANSFORMER_EPSILON, self.dtype, name="norm")(x)
        if self.linear_projection:
            y = y.reshape(batch, height * width, channels)
            y = dense(channels, self.dtype, name="proj_in")(y)
        else:
            y = conv(channels, 1, self.dtype, name="proj_in")(y)
            y = y.reshape(batch, height * width, channels)
        y = TransformerBlock(self.heads, self.attention, self.dtype, name="transformer_blocks_0")(
            y, context
        )
        if self.linear_projection:
            y = dense(channels, self.dtype, kernel_init=ZEROS, name="proj_out")(y)
            return _block_output(x + y.reshape(x.shape))
        y = conv(channels, 1, self.dtype, kernel_init=ZEROS, name="proj_out")(y.reshape(x.shape))
        return _block_output(x + y)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward; each normalised and added."""

    heads: int
    attention: str = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N C"], context: Float[Array, "B L D"]
    ) -> Float[Array, "B N C"]:
        """Returns x with the three branches added."""

        def norm(name: str) -> nn.Module:
            return nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name=name)

        def attend(name: str) -> nn.Module:
            return Attention(self.heads, self.attention, self.dtype, name=name)

        x = x + attend("attn1")(norm("norm1")(x))
        x = x + attend("attn2")(norm("norm2")(x), context)
        return x + FeedForward(self.dtype, name="ff")(norm("norm3")(x))


class FeedForward(nn.Module):
    """GEGLU (arXiv:2002.05202, eq. 6, with the exact GELU) of four times the width."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        """Returns the same shape."""
        channels = x.shape[-1]
        x = GEGLU(4 * channels, self.dtype, name="net_0")(x)
        return dense(channels, self.dtype, name="net_2")(x)


class GEGLU(nn.Module):
    """One linear layer gates another through a GELU."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B N F"]:
        """Returns [B, N, features]."""
        x, gate = DensePair(self.features, self.dtype, name="proj")(x)
        # The exact GELU, in float32 because its tail is a small difference. jax.nn.gelu goes
        # through erfc, whose gradient takes a CPU twice as long.
        gate = gate.astype(jnp.float32)
        return x * (gate * (0.5 + 0.5 * jax.lax.erf(gate * math.sqrt(0.5)))).astype(x.dtype)
