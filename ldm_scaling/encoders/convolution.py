"""Convolutions of the autoencoder, written so that they are fast on CPU and TPU alike.

Two facts shape this file. XLA's CPU backend forms the gradient of a convolution's kernel at
5-10 GFLOP/s when the images are large, because it sees a convolution with an image-sized window;
gathering patches of one example at a time, which stay in cache, reaches 20-30. And a 3x3
convolution of a nearest-neighbour doubled image equals four 2x2 convolutions of the small one:
16/36 of the multiplications, on every platform.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]


def _convolve(x, kernel, stride: int, padding: Padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k l C D"], stride: int, padding: Padding
) -> Float[Array, "B h w D"]:
    """2-D convolution [B, H, W, C] * [k, l, C, D] whose kernel gradient is also fast on CPU."""
    return _convolve(x, kernel, stride, padding)


def _forward(x, kernel, stride, padding):
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, dy):
    x, kernel = residuals
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, kernel, stride, padding), x)(dy)
    dkernel = lax.platform_dependent(
        x,
        dy,
        cpu=partial(_kernel_gradient_by_patches, kernel.shape, stride, padding),
        default=partial(_kernel_gradient_by_xla, kernel, stride, padding),
    )
    return dx, dkernel


convolve.defvjp(_forward, _backward)


def _kernel_gradient_by_xla(kernel, stride, padding, x, dy):
    transposed = jax.linear_transpose(lambda k: _convolve(x, k, stride, padding), kernel)
    return transposed(dy)[0]


def _kernel_gradient_by_patches(shape, stride, padding, x, dy):
    """Sums patches^T dy over examples, one at a time, so that its patches stay in cache."""
    rows, columns, channels, out = shape
    height, width = dy.shape[1:3]

    def add(total, example):
        image, gradient = example
        image = jnp.pad(image, (*padding, (0, 0)))
        patches = jnp.concatenate(
            [
                image[i : i + stride * height : stride, j : j + stride * width : stride]
                for i in range(rows)
                for j in range(columns)
            ],
            axis=-1,
        ).reshape(height * width, rows * columns * channels)
        gradient = gradient.reshape(height * width, out)
        return total + jnp.dot(patches.T, gradient, preferred_element_type=jnp.float32), None

    total, _ = lax.scan(add, jnp.zeros((rows * columns * channels, out), jnp.float32), (x, dy))
    return total.reshape(shape).astype(x.dtype)


def upsample_convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]
) -> Float[Array, "B 2*H 2*W D"]:
    """`convolve(nearest-neighbour doubled x, kernel)` with zero padding 1, without the doubling.

    Output pixel 2i + a sees input pixels i - 1 + a and i + a only, so each of the four phases
    (a, b) is a 2x2 convolution with sums of the kernel's taps.
    """
    batch, height, width, _ = x.shape
    channels = kernel.shape[-1]
    # phase_of_tap[a, i, t] = 1 where tap t of the 3 falls on pixel i of the 2 that phase a sees
    phase_of_tap = jnp.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], kernel.dtype)
    phases = jnp.einsum(
        "ait,bju,tucd->ijcabd", phase_of_tap, phase_of_tap, kernel, precision=lax.Precision.HIGHEST
    ).reshape(2, 2, x.shape[-1], 4 * channels)
    y = convolve(x, phases, 1, ((1, 1), (1, 1)))
    y = y.reshape(batch, height + 1, width + 1, 2, 2, channels)
    rows = [
        jnp.stack([y[:, a : a + height, b : b + width, a, b] for b in (0, 1)], axis=3)
        for a in (0, 1)
    ]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, channels)


def lecun_normal(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> Float[Array, "k l C D"]:
    """Flax's initializer of this name, drawn flat: XLA compiles 4-D random bits 3 times slower."""
    flat = nn.initializers.lecun_normal()(key, (math.prod(shape[:-1]), shape[-1]), dtype)
    return flat.reshape(shape)


class Conv(nn.Module):
    """Convolution with bias: `size` x `size`, or doubling the resolution first (`upsample`)."""

    channels: int
    size: int = 3
    stride: int = 1
    padding: Padding | None = None  # None: size // 2 on every side
    upsample: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """[B, H, W, C] -> [B, h, w, channels] in `dtype`."""
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", lecun_normal, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if self.upsample:
            y = upsample_convolve(x, kernel)
        else:
            side = (self.size // 2, self.size // 2)
            y = convolve(x, kernel, self.stride, self.padding or (side, side))
        return y + bias[None, None, None]
