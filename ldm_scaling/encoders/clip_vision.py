"""CLIP's image encoder and the two encoders together (arXiv 2103.00020), named as transformers'.

Parameters of `Clip` are those of transformers' `CLIPModel`. Of the two embeddings of unit length
the CLIP score is the cosine.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ldm_scaling.encoders.clip import ClipTextConfig, ClipTextTower
from ldm_scaling.encoders.clip_tower import TowerConfig, TowerEncoder, tower_norm
from ldm_scaling.types import Images, TokenIds

# Of the pixels of CLIP's training images in [0, 1]: openai/CLIP, clip/clip.py, `_transform`.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(TowerConfig):
    """Size of a CLIP image encoder; the defaults are ViT-L/14's.

    Raises:
      ValueError: patches do not tile the image.
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14

    def __post_init__(self):
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size}: must divide {self.image_size}")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both encoders and the size of the space they share.

    Attributes:
      text, vision: the encoders; the projections are not theirs but `Clip`'s, so that
        `text.projection_dim` has to be None.
      projection_dim: features of an embedding.
    """

    text: ClipTextConfig
    vision: ClipVisionConfig
    projection_dim: int = 768

    def __post_init__(self):
        if self.text.projection_dim is not None:
            raise ValueError(
                f"text.projection_dim={self.text.projection_dim}: the projection of a whole CLIP "
                "is that of ClipConfig; give None"
            )


class ClipEmbeddings(NamedTuple):
    """Embeddings of unit length, and the factor of their cosines in CLIP's training loss."""

    image: Float[Array, "N P"]
    text: Float[Array, "M P"]
    scale: Float[Array, ""]


def clip_pixels(images: Images) -> Images:
    """Images in [-1, 1] -> zero mean and unit variance over CLIP's training set."""
    mean, std = (np.asarray(x, np.float32)[None, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
    return ((images + 1) / 2 - mean) / std


class _PatchEmbeddings(nn.Module):
    config: ClipVisionConfig

    @nn.compact
    def __call__(self, pixels):
        config, width = self.config, self.config.hidden_size
        patch = (config.patch_size,) * 2
        patches = nn.Conv(
            width, patch, patch, "VALID", use_bias=False, dtype=config.dtype, name="patch_embedding"
        )(pixels)
        tokens = patches.reshape(len(pixels), -1, width).astype(jnp.float32)
        whole = self.param("class_embedding", nn.initializers.normal(), (width,))
        first = jnp.broadcast_to(whole[None, None], (len(pixels), 1, width))
        x = jnp.concatenate([first, tokens], axis=1)
        positions = nn.Embed(x.shape[1], width, name="position_embedding")
        return x + positions(jnp.arange(x.shape[1]))[None]


class ClipVision(nn.Module):
    """CLIP's image encoder without its projection: transformers' `vision_model`."""

    config: ClipVisionConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """Normalised pixels, see `clip_pixels` -> state of the class token, float32.

        Raises:
          ValueError: the images have another size than the encoder has positions for.
        """
        config = self.config
        wanted = (config.image_size, config.image_size, config.num_channels)
        if pixels.shape[1:] != wanted:
            raise ValueError(f"pixels.shape={pixels.shape}: images must be {wanted}")
        x = _PatchEmbeddings(config, name="embeddings")(pixels)
        x = tower_norm(config, "pre_layrnorm")(x)  # the name is transformers'
        last = TowerEncoder(config, name="encoder")(x)[-1]
        return tower_norm(config, "post_layernorm")(last[:, 0])


class Clip(nn.Module):
    """Images and texts into one space."""

    config: ClipConfig

    def setup(self):
        """Submodules under the names of transformers' attributes."""
        config = self.config
        self.text_model = ClipTextTower(config.text)
        self.vision_model = ClipVision(config.vision)
        size = config.projection_dim
        self.text_projection = nn.Dense(size, use_bias=False, dtype=config.text.dtype)
        self.visual_projection = nn.Dense(size, use_bias=False, dtype=config.vision.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    def __call__(
        self,
        pixels: Float[Array, "N H W C"],
        token_ids: Int[Array, "M L"],
        mask: Int[Array, "M L"] | Bool[Array, "M L"] | None = None,
    ) -> ClipEmbeddings:
        """See `embed_images` and `embed_texts`; as many of the one as of the other or not."""
        texts = self.embed_texts(token_ids, mask)
        return ClipEmbeddings(self.embed_images(pixels), texts, jnp.exp(self.logit_scale))

    def embed_images(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B P"]:
        """Normalised pixels, see `clip_pixels` -> embeddings of unit length, float32."""
        return _unit(self.visual_projection(self.vision_model(pixels)))

    def embed_texts(
        self, token_ids: TokenIds, mask: Int[Array, "B L"] | Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B P"]:
        """Token ids, see `ClipText` -> embeddings of unit length, float32."""
        return _unit(self.text_projection(self.text_model(token_ids, mask)[1]))


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
