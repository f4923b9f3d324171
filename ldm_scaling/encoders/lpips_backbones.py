"""The networks whose activations LPIPS compares: AlexNet, VGG-16 and SqueezeNet 1.1 (1801.03924).

Only what LPIPS taps is built. Parameter names are those of torchvision's files, whose classifiers
stay unread; taps and input scaling are those of the `lpips` package.
"""

from typing import NamedTuple, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ldm_scaling.types import Images

SHIFT = (-0.030, -0.088, -0.188)  # of RGB in [-1, 1]: ImageNet's mean ...
SCALE = (0.458, 0.448, 0.450)  # ... and deviation, rounded as in `lpips`


class Conv(NamedTuple):
    """A convolution with ReLU; `place` is where it stands in torchvision's list of layers."""

    place: int
    channels: int
    size: int = 3
    stride: int = 1
    padding: int = 1


class Fire(NamedTuple):
    """SqueezeNet's block (arXiv:1602.07360): squeeze to few channels, expand by 1x1 and 3x3."""

    place: int
    squeezed: int
    expanded: int  # channels of each of the two


Layers: TypeAlias = tuple[Conv | Fire, ...]


class Backbone(NamedTuple):
    """Stages of layers; a stage's output is tapped.

    Attributes:
      stages: from the image on.
      pooled: stages before which there is a max pool of stride 2.
      window: side of the pools.
      ceil: whether a last window that is partly outside counts.
    """

    stages: tuple[Layers, ...]
    pooled: tuple[int, ...]
    window: int = 3
    ceil: bool = False


BACKBONES = {
    "alex": Backbone(
        stages=(
            (Conv(0, 64, 11, 4, 2),),
            (Conv(3, 192, 5, 1, 2),),
            (Conv(6, 384),),
            (Conv(8, 256),),
            (Conv(10, 256),),
        ),
        pooled=(1, 2),
    ),
    "vgg": Backbone(
        stages=(
            (Conv(0, 64), Conv(2, 64)),
            (Conv(5, 128), Conv(7, 128)),
            (Conv(10, 256), Conv(12, 256), Conv(14, 256)),
            (Conv(17, 512), Conv(19, 512), Conv(21, 512)),
            (Conv(24, 512), Conv(26, 512), Conv(28, 512)),
        ),
        pooled=(1, 2, 3, 4),
        window=2,
    ),
    "squeeze": Backbone(
        stages=(
            (Conv(0, 64, 3, 2, 0),),
            (Fire(3, 16, 64), Fire(4, 16, 64)),
            (Fire(6, 32, 128), Fire(7, 32, 128)),
            (Fire(9, 48, 192),),
            (Fire(10, 48, 192),),
            (Fire(11, 64, 256),),
            (Fire(12, 64, 256),),
        ),
        pooled=(1, 2, 3),
        ceil=True,
    ),
}


class _Conv(nn.Module):
    channels: int
    size: int = 3
    stride: int = 1
    padding: int = 1

    @nn.compact
    def __call__(self, x):
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        y = lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return nn.relu(y + bias.astype(x.dtype)[None, None, None])


class _Fire(nn.Module):
    squeezed: int
    expanded: int

    @nn.compact
    def __call__(self, x):
        x = _Conv(self.squeezed, 1, 1, 0, name="squeeze")(x)
        near = _Conv(self.expanded, 1, 1, 0, name="expand1x1")(x)
        return jnp.concatenate([near, _Conv(self.expanded, name="expand3x3")(x)], axis=-1)


def _pool(x, window: int, ceil: bool):
    rest = [(length - window) % 2 if ceil else 0 for length in x.shape[1:3]]
    return nn.max_pool(x, (window, window), (2, 2), padding=[(0, extra) for extra in rest])


class LpipsBackbone(nn.Module):
    """Images [-1, 1] [B, H, W, 3] -> activations after each stage of `BACKBONES[net]`.

    Computes in the images' dtype, float32 in full precision on every device.
    """

    net: str = "alex"

    @nn.compact
    def __call__(self, images: Images) -> tuple[Float[Array, "B _ _ _"], ...]:
        """5 activations (alex, vgg) or 7 (squeeze), [B, h, w, C] each, never negative."""
        if min(images.shape[1:3]) < 32:
            raise ValueError(f"images {images.shape}: LPIPS needs at least 32 x 32 pixels")
        backbone = BACKBONES[self.net]
        shift, scale = (jnp.asarray(row, images.dtype)[None, None, None] for row in (SHIFT, SCALE))
        x, taps = (images - shift) / scale, []
        for number, stage in enumerate(backbone.stages):
            if number in backbone.pooled:
                x = _pool(x, backbone.window, backbone.ceil)
            for layer in stage:
                place, *settings = layer
                block = _Fire if isinstance(layer, Fire) else _Conv
                x = block(*settings, name=f"features_{place}")(x)
            taps.append(x)
        return tuple(taps)
