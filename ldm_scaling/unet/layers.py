"""Layers: linear, convolution and group normalisation as every block here uses them."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

ZEROS = nn.initializers.zeros
UNFOLDED_PIXELS = 16  # up to 4x4 a convolution runs as a matrix product


def lecun_normal(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "..."]:
    """Truncated normal of variance 1 / fan-in, the last axis being the outputs.

    The distribution of `flax.linen.initializers.lecun_normal`, but drawn flat and then shaped: XLA
    takes over three times as long to compile the random bits of a four-dimensional array
    (*measured* on a CPU: 1.0 against 0.3 s a parameter, and a UNet has a hundred).
    """
    # 0.8796...: standard deviation of the normal distribution cut at two of its own
    deviation = math.prod(shape[:-1]) ** -0.5 / 0.87962566103423978
    flat = jax.random.truncated_normal(key, -2.0, 2.0, (math.prod(shape),), dtype)
    return deviation * flat.reshape(shape)


def dense(features: int, dtype: DTypeLike, kernel_init=lecun_normal, **kwargs) -> nn.Dense:
    """A linear layer that computes in `dtype`."""
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init, **kwargs)


class DenseToHeads(nn.Module):
    """A linear layer without bias whose outputs are dealt out to heads.

    The kernel is that of `dense`, but it is dealt out before the product: the compiler then writes
    heads where the next operation reads them. Dealing out the product instead costs a TPU a copy
    of each (estimated for v5p, attention of 8 heads of 40 over 8 x 4096 tokens with its gradient:
    1.61 ms beside the scores' kernel, and 0.99 ms by this layer and `DenseFromHeads`).
    """

    features: int
    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B N {self.heads} S"]:
        """Returns [B, N, heads, features / heads]."""
        kernel = self.param("kernel", lecun_normal, (x.shape[-1], self.features))
        kernel = kernel.astype(self.dtype).reshape(x.shape[-1], self.heads, -1)
        return jnp.einsum("bnc,chs->bnhs", x.astype(self.dtype), kernel)


class DenseFromHeads(nn.Module):
    """A linear layer of the features of all heads together: the other end of `DenseToHeads`."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N H S"]) -> Float[Array, "B N {self.features}"]:
        """Returns [B, N, features]."""
        _, _, heads, size = x.shape
        kernel = self.param("kernel", lecun_normal, (heads * size, self.features))
        bias = self.param("bias", ZEROS, (self.features,))
        kernel = kernel.astype(self.dtype).reshape(heads, size, -1)
        y = jnp.einsum("bnhs,hsc->bnc", x.astype(self.dtype), kernel)
        return y + bias.astype(self.dtype)[None, None]


class DensePair(nn.Module):
    """Two linear layers of one input, their kernels stacked.

    One array with an axis for the two, not twice the outputs: each half can then be split over
    devices along its own outputs, and equal outputs of both lie on the same device.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch C"]
    ) -> tuple[Float[Array, "*batch F"], Float[Array, "*batch F"]]:
        """Returns both outputs, each [..., features]."""
        kernel = self.param("kernel", _pair_of_kernels, (2, x.shape[-1], self.features))
        bias = self.param("bias", ZEROS, (2, self.features))
        x, kernel, bias = (array.astype(self.dtype) for array in (x, kernel, bias))
        first, second = (
            jnp.dot(x, kernel[i]) + bias[i].reshape((1,) * (x.ndim - 1) + (-1,)) for i in (0, 1)
        )
        return first, second


def _pair_of_kernels(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "2 C F"]:
    pair, inputs, features = shape
    drawn = lecun_normal(key, (inputs, pair * features))
    return drawn.reshape(inputs, pair, features).swapaxes(0, 1)


def conv(channels: int, size: int, dtype: DTypeLike, kernel_init=lecun_normal, **kwargs) -> nn.Conv:
    """A convolution of odd size, padded by half of it on every side, also at stride 2."""
    padding = ((size // 2, size // 2),) * 2
    return nn.Conv(
        channels,
        (size, size),
        padding=padding,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=_convolve,
        **kwargs,
    )


def _convolve(x: Array, kernel: Array, strides: tuple[int, ...], padding, **kwargs) -> Array:
    """`jax.lax.conv_general_dilated`, or the same as one matrix product on a tiny feature map.

    Where the kernel is larger than the map, XLA swaps their roles, which on a CPU is slow and its
    gradient slower (*measured* at 2x2 pixels, 192 channels, batch 64: 60 ms against 7 ms).
    """
    height, width = x.shape[1:3]
    if height * width > UNFOLDED_PIXELS or tuple(strides) != (1, 1):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    offsets = itertools.product(range(kernel.shape[0]), range(kernel.shape[1]))
    shifted = [padded[:, i : i + height, j : j + width] for i, j in offsets]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class GroupNorm(nn.Module):
    """Group normalisation over space (arXiv:1803.08494), statistics in float32.

    Written as one scale and one shift per example and channel: sums over space first, then over
    the few channels of a group, so that the big array is only read along its fast axis.
    """

    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
        """Normalises each group of channels of each example to mean 0 and variance 1."""
        batch, channels = x.shape[0], x.shape[-1]
        weight = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", ZEROS, (channels,))
        flat = x.reshape(batch, -1, channels).astype(jnp.float32)

        def group_mean(y: Array) -> Array:  # [B, N, C] -> [B, C], equal within a group
            mean = y.mean(axis=1).reshape(batch, self.groups, -1).mean(axis=2)
            return jnp.repeat(mean, channels // self.groups, axis=1)

        mean = group_mean(flat)
        variance = jnp.maximum(group_mean(jnp.square(flat)) - jnp.square(mean), 0.0)
        scale = jax.lax.rsqrt(variance + self.epsilon) * weight[None]
        shift = bias[None] - mean * scale
        return (flat * scale[:, None] + shift[:, None]).astype(self.dtype).reshape(x.shape)
