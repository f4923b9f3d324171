"""Convolutions with the batch norm that follows them multiplied in: networks that are only read."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

NORM_EPSILON = 1e-3
"""TensorFlow's, of slim and of the EfficientNets; networks converted from there kept it."""


class _Kernel(nn.Module):
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self):
        return self.param("kernel", nn.initializers.he_normal(), self.shape)


class _Norm(nn.Module):
    """Batch norm with frozen statistics, as the gain and offset that follow a convolution."""

    channels: int

    @nn.compact
    def __call__(self):
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias, mean, variance = (
            self.param(name, init, (self.channels,))
            for name, init in (("scale", ones), ("bias", zeros), ("mean", zeros), ("var", ones))
        )
        gain = scale * jax.lax.rsqrt(variance + NORM_EPSILON)
        return gain, bias - mean * gain


def folded(
    shape: tuple[int, ...], conv: str, norm: str
) -> tuple[Float[Array, "k l C D"], Float[Array, "1 1 1 D"]]:
    """Kernel with the gain of the following norm multiplied in, and the norm's offset.

    To be called inside a compact module, whose submodules `conv` and `norm` it makes. In a
    depthwise kernel [k, l, 1, D] the last axis counts as the outputs.
    """
    gain, offset = _Norm(shape[-1], name=norm)()
    return _Kernel(shape, name=conv)() * gain[None, None, None], offset[None, None, None]
