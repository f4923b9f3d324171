"""Inception-v3 as FID and the Inception score know it: TensorFlow's graph of December 2015.

Architecture: arXiv 1512.00567 without the auxiliary classifier. Where it differs from the network
of the paper it follows the graph of `inception-2015-12-05.tgz`, for which pytorch-fid and
torch-fidelity are the references: average pools count only pixels inside the image, the last
block pools by maximum (`Mixed_7c`), and there are 1008 classes. Parameter names are those of
`pt_inception-2015-12-05-6726825d.pth`.
"""

from typing import NamedTuple, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ldm_scaling.encoders.frozen_norm import folded
from ldm_scaling.types import Images

SIZE = 299
LARGE = 5000  # pixels from which a CPU convolves one image after another
FEATURES = 2048
CLASSES = 1008  # ImageNet's 1000, a background and seven that were never used


class InceptionOutputs(NamedTuple):
    """What metrics are computed from.

    Attributes:
      features: pooled, for FID, KID, precision and recall.
      logits: of the classes.
      unbiased_logits: without the classifier's bias, as the published Inception scores have it.
    """

    features: Float[Array, "B 2048"]
    logits: Float[Array, "B 1008"]
    unbiased_logits: Float[Array, "B 1008"]


class Conv(NamedTuple):
    """A convolution with batch norm and ReLU; `padded`: zeros around keep the size."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


# A branch is a chain of steps: convolutions, pools by name, and forks: convolutions of one input
# whose outputs are laid side by side.
Step: TypeAlias = Conv | str | tuple[Conv, ...]
Branches: TypeAlias = tuple[tuple[Step, ...], ...]

AVERAGE, MAXIMUM, SHRINK = "average", "maximum", "shrink"  # 3x3 pools; the last one of stride 2


def _block_a(pooled: int) -> Branches:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        (AVERAGE, Conv("branch_pool", pooled)),
    )


def _block_b() -> Branches:
    return (
        (Conv("branch3x3", 384, (3, 3), 2, padded=False),),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2, padded=False),
        ),
        (SHRINK,),
    )


def _block_c(inner: int) -> Branches:
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", inner),
            Conv("branch7x7_2", inner, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, (7, 1)),
            Conv("branch7x7dbl_3", inner, (1, 7)),
            Conv("branch7x7dbl_4", inner, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (AVERAGE, Conv("branch_pool", 192)),
    )


def _block_d() -> Branches:
    return (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, padded=False)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2, padded=False),
        ),
        (SHRINK,),
    )


def _block_e(pool: str) -> Branches:
    return (
        (Conv("branch1x1", 320),),
        (
            Conv("branch3x3_1", 384),
            (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
        ),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Conv("branch_pool", 192)),
    )


STEM: tuple[Step, ...] = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, padded=False),
    Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    SHRINK,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    SHRINK,
)

BLOCKS: dict[str, Branches] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e(AVERAGE),
    "Mixed_7c": _block_e(MAXIMUM),
}


def _convolve(x, kernel, stride: int, padding):
    """A convolution in full precision, in the way that is fast on each platform.

    *Measured* on two CPU cores, batch 8: a kernel of one pixel is twice as fast as a product of
    matrices (186 against 101 GFLOP/s at 17 x 17 x 768), and images of many pixels are one after
    another (109 against 57 at 73 x 73 x 80), where they stay in the cache.
    """
    if kernel.shape[:2] == (1, 1):
        return jnp.dot(x, kernel[0, 0], precision=lax.Precision.HIGHEST)

    def together(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )

    def one_by_one(x, kernel):
        return lax.map(lambda image: together(image[None], kernel)[0], x)

    if x.shape[1] * x.shape[2] < LARGE:
        return together(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=one_by_one, default=together)


class _ConvNorm(nn.Module):
    channels: int
    kernel: tuple[int, int]
    stride: int
    padded: bool

    @nn.compact
    def __call__(self, x):
        kernel, offset = folded((*self.kernel, x.shape[-1], self.channels), "conv", "bn")
        padding = [(side // 2, side // 2) if self.padded else (0, 0) for side in self.kernel]
        return nn.relu(_convolve(x, kernel, self.stride, padding) + offset)


def _walk(x, steps: tuple[Step, ...]):
    """Applies a branch, inside a compact module."""
    for step in steps:
        if step == SHRINK:
            x = nn.max_pool(x, (3, 3), (2, 2))
        elif step == MAXIMUM:
            x = nn.max_pool(x, (3, 3), padding="SAME")
        elif step == AVERAGE:
            x = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        elif isinstance(step, Conv):
            x = _ConvNorm(step.channels, step.kernel, step.stride, step.padded, name=step.name)(x)
        else:
            x = jnp.concatenate([_walk(x, (conv,)) for conv in step], axis=-1)
    return x


class _Block(nn.Module):
    branches: Branches

    @nn.compact
    def __call__(self, x):
        return jnp.concatenate([_walk(x, branch) for branch in self.branches], axis=-1)


class _Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], CLASSES))
        bias = self.param("bias", nn.initializers.zeros, (CLASSES,))
        unbiased = jnp.dot(x, kernel, precision=lax.Precision.HIGHEST)
        return unbiased + bias[None], unbiased


class InceptionV3(nn.Module):
    """Images of `SIZE` x `SIZE` pixels, about [-1, 1] -> pooled features and class logits.

    How pixels come to that size and range is part of a metric's definition, and of
    `ldm_scaling.evaluation.features`. Float32 in full precision on every device: a distance
    between features is small against the features.
    """

    @nn.compact
    def __call__(self, images: Images) -> InceptionOutputs:
        """[B, H, W, 3] with H, W >= 75 -> features [B, 2048] and logits [B, 1008]."""
        if min(images.shape[1:3]) < 75:
            raise ValueError(f"images {images.shape}: Inception needs at least 75 x 75 pixels")
        x = _walk(images, STEM)
        for name, branches in BLOCKS.items():
            x = _Block(branches, name=name)(x)
        features = x.mean((1, 2))
        return InceptionOutputs(features, *_Classifier(name="fc")(features))
