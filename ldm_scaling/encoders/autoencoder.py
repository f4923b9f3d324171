"""The KL autoencoder of latent diffusion (arXiv 2112.10752, section 3.1).

The architecture and the parameter names are those of diffusers' `AutoencoderKL`, so that its files
load by one generic rule. Everything is NHWC.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_scaling.encoders.convolution import Conv
from ldm_scaling.types import Images, Keys, Latents

NORM_EPSILON = 1e-6  # of every group norm in diffusers' AutoencoderKL
LOGVAR_RANGE = (-30.0, 20.0)  # diffusers' DiagonalGaussianDistribution


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Size of a KL autoencoder; the defaults are Stable Diffusion's.

    The factor between pixels and latents is `2 ** (len(block_out_channels) - 1)`. Latents that a
    diffusion model sees are `(sample - shift_factor) * scaling_factor`.
    """

    in_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    mid_attention: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        for channels in self.block_out_channels:
            if channels % self.norm_groups:
                raise ValueError(
                    f"block_out_channels={self.block_out_channels}: every entry must be a multiple "
                    f"of norm_groups={self.norm_groups}"
                )
        if self.layers_per_block < 1:
            raise ValueError(f"layers_per_block={self.layers_per_block}: at least 1 is needed")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}: choose 'float32' or 'bfloat16'")

    @property
    def factor(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


def sample_posterior(mean: Latents, logvar: Latents, keys: Keys) -> Latents:
    """Draws z ~ N(mean, exp(logvar)), unscaled, with one key [B] per example.

    Noise is drawn per example, so that a sample does not depend on the batch it is in.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(keys)
    return mean + jnp.exp(0.5 * logvar) * noise


def _conv(config: AutoencoderConfig, channels: int, name: str, **options) -> Conv:
    return Conv(channels, dtype=config.dtype, name=name, **options)


class GroupNorm(nn.Module):
    """Group normalisation over [B, H, W, C] with float32 statistics, returned in `dtype`."""

    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Normalises each group of channels of each example."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.float32)
        mean, variance = _group_moments(x, self.groups)
        gain = jax.lax.rsqrt(variance + NORM_EPSILON) * scale[None, None, None]
        return ((x - mean) * gain + bias[None, None, None]).astype(self.dtype)


def _group_moments(x, groups: int):
    """Mean and variance of each group of [B, H, W, C], given per channel as [B, 1, 1, C].

    One pass over x: sums per channel first (a reduction that XLA vectorises, unlike one over
    [H, W, C / groups]), then groups from channels. A pixel is subtracted before squaring, so that
    a mean far from zero does not cancel the variance away.
    """
    batch, _, _, channels = x.shape
    pixel = jax.lax.stop_gradient(x[:, :1, :1])
    offset = (x - pixel).mean((1, 2), keepdims=True)
    square = jnp.square(x - pixel).mean((1, 2), keepdims=True)
    within = (square - jnp.square(offset)).reshape(batch, groups, -1)
    channel_mean = (pixel + offset).reshape(batch, groups, -1)
    mean = channel_mean.mean(-1, keepdims=True)
    variance = (within + jnp.square(channel_mean - mean)).mean(-1, keepdims=True)

    def per_channel(moment):
        return jnp.broadcast_to(moment, channel_mean.shape).reshape(batch, 1, 1, channels)

    return per_channel(mean), per_channel(jnp.maximum(variance, 0.0))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and SiLU, and a shortcut."""

    config: AutoencoderConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """[B, H, W, C] -> [B, H, W, channels]."""
        config, shortcut = self.config, x
        x = nn.silu(GroupNorm(config.norm_groups, config.dtype, name="norm1")(x))
        x = _conv(config, self.channels, "conv1")(x)
        x = nn.silu(GroupNorm(config.norm_groups, config.dtype, name="norm2")(x))
        x = _conv(config, self.channels, "conv2")(x)
        if shortcut.shape[-1] != self.channels:
            shortcut = _conv(config, self.channels, "conv_shortcut", size=1)(shortcut)
        return shortcut + x


class Attention(nn.Module):
    """Self-attention over all pixels with one head, softmax in float32, and a shortcut."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Adds to every pixel what it attends to."""
        batch, height, width, channels = x.shape
        h = GroupNorm(self.config.norm_groups, self.config.dtype, name="group_norm")(x)
        h = h.reshape(batch, height * width, channels)
        q, k, v = (
            nn.Dense(channels, dtype=self.config.dtype, name=name)(h)
            for name in ("to_q", "to_k", "to_v")
        )
        logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits * channels**-0.5).astype(v.dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, v)
        h = nn.Dense(channels, dtype=self.config.dtype, name="to_out_0")(h)
        return x + h.reshape(x.shape)


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Keeps the shape."""
        x = ResidualBlock(self.config, x.shape[-1], name="resnets_0")(x)
        if self.config.mid_attention:
            x = Attention(self.config, name="attentions_0")(x)
        return ResidualBlock(self.config, x.shape[-1], name="resnets_1")(x)


class Downsample(nn.Module):
    """3x3 convolution with stride 2, padded on the lower right only, as CompVis trained it."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """[B, H, W, C] -> [B, H / 2, W / 2, C]."""
        options = {"stride": 2, "padding": ((0, 1), (0, 1))}
        return _conv(self.config, x.shape[-1], "conv", **options)(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """[B, H, W, C] -> [B, 2 H, 2 W, C]."""
        return _conv(self.config, x.shape[-1], "conv", upsample=True)(x)


class DownBlock(nn.Module):
    """Residual blocks of one level, then half the resolution unless it is the last level."""

    config: AutoencoderConfig
    channels: int
    downsample: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """[B, H, W, C] -> [B, H / 2, W / 2, channels], or [B, H, W, channels] at the last level."""
        for i in range(self.config.layers_per_block):
            x = ResidualBlock(self.config, self.channels, name=f"resnets_{i}")(x)
        return Downsample(self.config, name="downsamplers_0")(x) if self.downsample else x


class UpBlock(nn.Module):
    """Residual blocks of one level (one more than down), then double the resolution."""

    config: AutoencoderConfig
    channels: int
    upsample: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """[B, H, W, C] -> [B, 2 H, 2 W, channels], or [B, H, W, channels] at the last level."""
        for i in range(self.config.layers_per_block + 1):
            x = ResidualBlock(self.config, self.channels, name=f"resnets_{i}")(x)
        return Upsample(self.config, name="upsamplers_0")(x) if self.upsample else x


class Encoder(nn.Module):
    """Images -> the 2 x latent_channels channels from which the moments are read."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Images [B, H, W, in_channels] -> [B, h, w, 2 latent_channels]."""
        config, widths = self.config, self.config.block_out_channels
        x = _conv(config, widths[0], "conv_in")(x.astype(config.dtype))
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            x = DownBlock(config, width, downsample=not last, name=f"down_blocks_{i}")(x)
        x = MidBlock(config, name="mid_block")(x)
        x = nn.silu(GroupNorm(config.norm_groups, config.dtype, name="conv_norm_out")(x))
        return _conv(config, 2 * config.latent_channels, "conv_out")(x)


class Decoder(nn.Module):
    """Latents -> images."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W D"]:
        """Latents [B, h, w, latent_channels] -> [B, H, W, in_channels]."""
        config, widths = self.config, self.config.block_out_channels[::-1]
        x = _conv(config, widths[0], "conv_in")(x)
        x = MidBlock(config, name="mid_block")(x)
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            x = UpBlock(config, width, upsample=not last, name=f"up_blocks_{i}")(x)
        x = nn.silu(GroupNorm(config.norm_groups, config.dtype, name="conv_norm_out")(x))
        return _conv(config, config.in_channels, "conv_out")(x)


class Autoencoder(nn.Module):
    """KL autoencoder; call with `method="encode"` or `method="decode"`.

    Outputs are float32 whatever the compute dtype.
    """

    config: AutoencoderConfig

    def setup(self):
        """Names the parts as diffusers does."""
        config = self.config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv(2 * config.latent_channels, size=1, dtype=config.dtype)
        self.post_quant_conv = Conv(config.latent_channels, size=1, dtype=config.dtype)

    def encode(
        self, images: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
        """Images [B, H, W, in_channels] in [-1, 1] -> (mean, logvar), both [B, h, w, c] unscaled.

        Raises:
            ValueError: height or width is not a multiple of `config.factor`.
        """
        if images.shape[1] % self.config.factor or images.shape[2] % self.config.factor:
            raise ValueError(
                f"images.shape={images.shape}: height and width must be multiples of "
                f"{self.config.factor}"
            )
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        """Unscaled latents [B, h, w, c] -> images [B, H, W, in_channels], about in [-1, 1]."""
        h = self.post_quant_conv(latents.astype(self.config.dtype))
        return self.decoder(h).astype(jnp.float32)

    def __call__(self, images: Images) -> Images:
        """Images -> their reconstruction from the posterior's mean; touches every parameter."""
        return self.decode(self.encode(images)[0])
