"""DINOv2's vision transformer (arXiv 2304.07193), named as in files of transformers' `Dinov2Model`.

The defaults of `Dinov2Config` are ViT-L/14's. Positions were trained for one size of image; for
another they are interpolated, of which there are two ways: transformers' (modeling_dinov2.py,
`interpolate_pos_encoding`), and that of Meta's own code, whose grid of new positions is a little
finer (facebookresearch/dinov2, `interpolate_offset=0.1` in dinov2/hub/backbones.py).
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_scaling.encoders.clip_tower import TowerConfig, TowerMlp, attend, tower_norm

# Of ImageNet's pixels in [0, 1], which DINOv2 was trained with: facebookresearch/dinov2,
# dinov2/data/transforms.py.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

META_OFFSET = 0.1
"""`position_offset` of Meta's own models without registers, which torch.hub loads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dinov2Config(TowerConfig):
    """Size of a DINOv2; the defaults are ViT-L/14's.

    Attributes:
      intermediate_size: features inside a feed-forward layer, of each half where it is gated.
      image_size: side in pixels that there are positions for; others are interpolated.
      use_swiglu_ffn: feed-forward layers are SwiGLU (arXiv 2002.05202), as in ViT-g/14 alone;
        `hidden_act` is then not used.
      position_offset: what is added to the number of patches along an axis before positions are
        interpolated: 0 in transformers, `META_OFFSET` in Meta's own code.

    Raises:
      ValueError: patches do not tile the image, or the offset is not in [0, 1).
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    num_channels: int = 3
    image_size: int = 518
    patch_size: int = 14
    use_swiglu_ffn: bool = False
    position_offset: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size}: must divide {self.image_size}")
        if not 0 <= self.position_offset < 1:
            raise ValueError(f"position_offset={self.position_offset}: at least 0 and less than 1")


class _Patches(nn.Module):
    config: Dinov2Config

    @nn.compact
    def __call__(self, pixels):
        config, patch = self.config, (self.config.patch_size,) * 2
        return nn.Conv(
            config.hidden_size, patch, patch, "VALID", dtype=config.dtype, name="projection"
        )(pixels)


class _Embeddings(nn.Module):
    config: Dinov2Config

    @nn.compact
    def __call__(self, pixels):
        config, width = self.config, self.config.hidden_size
        patches = _Patches(config, name="patch_embeddings")(pixels).astype(jnp.float32)
        batch, rows, columns, _ = patches.shape
        positions = (config.image_size // config.patch_size) ** 2
        whole = self.param("cls_token", nn.initializers.normal(), (1, 1, width))
        table = self.param(
            "position_embeddings", nn.initializers.normal(0.02), (1, positions + 1, width)
        )
        first = jnp.broadcast_to(whole, (batch, 1, width))
        x = jnp.concatenate([first, patches.reshape(batch, rows * columns, width)], axis=1)
        return x + positions_of(table, rows, columns, config.position_offset)


class _SelfAttention(nn.Module):
    config: Dinov2Config

    @nn.compact
    def __call__(self, x):
        q, k, v = (
            nn.Dense(x.shape[-1], dtype=self.config.dtype, name=name)(x)
            for name in ("query", "key", "value")
        )
        return attend(q, k, v, self.config.num_attention_heads)


class _Output(nn.Module):
    config: Dinov2Config

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1], dtype=self.config.dtype, name="dense")(x)


class _Attention(nn.Module):
    config: Dinov2Config

    @nn.compact
    def __call__(self, x):
        return _Output(self.config, name="output")(_SelfAttention(self.config, name="attention")(x))


class _SwiGlu(nn.Module):
    config: Dinov2Config

    @nn.compact
    def __call__(self, x):
        config = self.config
        y = nn.Dense(2 * config.intermediate_size, dtype=config.dtype, name="weights_in")(x)
        gate, value = jnp.split(y, 2, axis=-1)
        return nn.Dense(config.hidden_size, dtype=config.dtype, name="weights_out")(
            nn.silu(gate) * value
        )


class _LayerScale(nn.Module):
    """A learned factor of each feature of a branch (arXiv 2103.17239)."""

    @nn.compact
    def __call__(self, x):
        factors = self.param("lambda1", nn.initializers.ones, (x.shape[-1],))
        return x.astype(jnp.float32) * factors[None, None]


class _Layer(nn.Module):
    config: Dinov2Config

    @nn.compact
    def __call__(self, x):
        config = self.config
        y = _Attention(config, name="attention")(tower_norm(config, "norm1")(x))
        x = x + _LayerScale(name="layer_scale1")(y)
        mlp = _SwiGlu if config.use_swiglu_ffn else TowerMlp
        y = mlp(config, name="mlp")(tower_norm(config, "norm2")(x))
        return x + _LayerScale(name="layer_scale2")(y)


class _Encoder(nn.Module):
    config: Dinov2Config

    @nn.compact
    def __call__(self, x):
        for i in range(self.config.num_hidden_layers):
            x = _Layer(self.config, name=f"layer_{i}")(x)
        return x


class Dinov2(nn.Module):
    """DINOv2 without registers, and without the token that masks patches in its training."""

    config: Dinov2Config

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B L D"]:
        """Normalised pixels -> states after the final norm, float32; the first is the image's.

        Args:
          pixels: of [0, 1] less `PIXEL_MEAN`, over `PIXEL_STD`; of any size that patches tile.

        Returns:
          The class token's state, then those of the L - 1 patches, row by row.

        Raises:
          ValueError: patches do not tile the images, or these have another number of channels.
        """
        config, patch = self.config, self.config.patch_size
        _, height, width, channels = pixels.shape
        if height % patch or width % patch or channels != config.num_channels:
            raise ValueError(
                f"pixels.shape={pixels.shape}: sides must be multiples of {patch}, channels "
                f"{config.num_channels}"
            )
        x = _Embeddings(config, name="embeddings")(pixels)
        return tower_norm(config, "layernorm")(_Encoder(config, name="encoder")(x))


def positions_of(
    table: Float[Array | np.ndarray, "1 N D"], rows: int, columns: int, offset: float = 0.0
) -> Float[Array | np.ndarray, "1 L D"]:
    """Positions of the class token and of rows x columns patches, from those of a square of them.

    Bicubic without antialiasing, as PyTorch's `interpolate` has it; those of the square itself are
    left as they are.

    Args:
      table: of the class token, then of the patches of the square, row by row.
      rows, columns: of the patches that there are.
      offset: see `Dinov2Config.position_offset`.
    """
    side = math.isqrt(table.shape[1] - 1)
    if (rows, columns) == (side, side):
        return table
    square = table[0, 1:].reshape(side, side, -1)
    down, across = (
        jnp.asarray(position_matrix(side, count, offset), jnp.float32) for count in (rows, columns)
    )
    highest = jax.lax.Precision.HIGHEST
    scaled = jnp.einsum("rs,std->rtd", down, square, precision=highest)
    scaled = jnp.einsum("ct,rtd->rcd", across, scaled, precision=highest)
    return jnp.concatenate([table[:, :1], scaled.reshape(1, rows * columns, -1)], axis=1)


@functools.lru_cache(maxsize=64)
def position_matrix(size: int, target: int, offset: float) -> Float[np.ndarray, "{target} {size}"]:
    """Weights of the `size` positions along an axis in each of the `target` new ones."""
    new = np.arange(target)[:, None]
    place = (new + 0.5) * (size / (target + offset)) - 0.5
    taps = np.floor(place).astype(int) + np.arange(-1, 3)[None]
    matrix = np.zeros((target, size))
    np.add.at(matrix, (new, np.clip(taps, 0, size - 1)), _cubic(place - taps))  # edges repeat
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -3/4, as PyTorch has it; Pillow's is with -1/2."""
    x = np.abs(x)
    near, far = (1.25 * x - 2.25) * x**2 + 1, ((3.75 - 0.75 * x) * x - 6) * x + 3
    return np.where(x < 1, near, np.where(x < 2, far, 0))
