"""The UNet: assembly only."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from ldm_scaling.placement import keep_examples_apart
from ldm_scaling.unet.attention import FLASH_RESIDUALS
from ldm_scaling.unet.blocks import (
    BLOCK_OUTPUT,
    RESNET_EPSILON,
    Downsample,
    ResnetBlock,
    TimestepEmbedding,
    Transformer,
    Upsample,
    timestep_embedding,
)
from ldm_scaling.unet.config import UNetConfig
from ldm_scaling.unet.layers import ZEROS, GroupNorm, conv

OFFLOAD_BLOCKS = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[BLOCK_OUTPUT],
    offload_src="device",
    offload_dst="pinned_host",
)


class UNet(nn.Module):
    """Text-conditioned latent diffusion UNet (arXiv:2112.10752; diffusers UNet2DConditionModel).

    Attributes:
      config: see `UNetConfig`.
    """

    config: UNetConfig

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Real[Array, "B"],
        context: Float[Array, "B L D"],
    ) -> Float[Array, "B H W K"]:
        """Predicts noise, clean latents or velocity, as `config.prediction_type` says.

        Args:
          x: noisy latents; H and W must be multiples of 2 ** (levels - 1).
          t: timesteps in 0 (clean) .. 999 (noise), integers or not.
          context: text features.

        Returns:
          [B, H, W, out_channels], float32.

        Raises:
          ValueError: for a shape that does not fit the config.
        """
        _check_shapes(self.config, x.shape, context.shape)
        if self.config.remat != "offload":
            return self._assemble(x, t, context)
        return nn.remat(UNet._assemble, policy=OFFLOAD_BLOCKS)(self, x, t, context)

    @nn.compact
    def _assemble(self, x: Array, t: Array, context: Array) -> Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        channels, levels = config.block_out_channels, len(config.block_out_channels)

        sinusoids = timestep_embedding(t, channels[0]).astype(dtype)
        time = TimestepEmbedding(4 * channels[0], dtype, name="time_embedding")(sinusoids)
        time, context = keep_examples_apart(time), keep_examples_apart(context.astype(dtype))

        x = conv(channels[0], 3, dtype, name="conv_in")(x)
        skips = [x]
        for level in range(levels):
            down = DownBlock(config, level, name=f"down_blocks_{level}")
            x, outputs = down(x, time, context)
            skips += outputs
        x = MidBlock(config, name="mid_block")(x, time, context)
        for i in range(levels):
            up = UpBlock(config, levels - 1 - i, name=f"up_blocks_{i}")
            first = len(skips) - config.layers_per_block - 1
            x = up(x, skips[first:], time, context)
            del skips[first:]

        x = nn.silu(GroupNorm(config.norm_groups, RESNET_EPSILON, dtype, name="conv_norm_out")(x))
        x = conv(config.out_channels, 3, dtype, kernel_init=ZEROS, name="conv_out")(x)
        return x.astype(jnp.float32)


class DownBlock(nn.Module):
    """A level on the way down: residual blocks, each with its transformer, then half the size."""

    config: UNetConfig
    level: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], time: Float[Array, "B T"], context: Float[Array, "B L D"]
    ) -> tuple[Array, list[Array]]:
        """Returns the result and what the way up will read, in the order made."""
        outputs = []
        for i in range(self.config.layers_per_block):
            x = _resnet(self.config, self.level, i)(x, time)
            if self.config.attention_levels[self.level]:
                x = _transformer(self.config, self.level, i)(x, context)
            outputs.append(x)
        if self.level < len(self.config.block_out_channels) - 1:
            x = Downsample(x.shape[-1], x.dtype, name="downsamplers_0")(x)
            outputs.append(x)
        return x, outputs


class MidBlock(nn.Module):
    """The middle: residual block, transformer, residual block at the coarsest level."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], time: Float[Array, "B T"], context: Float[Array, "B L D"]
    ) -> Float[Array, "B H W C"]:
        """Returns the same shape."""
        level = len(self.config.block_out_channels) - 1
        x = _resnet(self.config, level, 0)(x, time)
        x = _transformer(self.config, level, 0)(x, context)
        return _resnet(self.config, level, 1)(x, time)


class UpBlock(nn.Module):
    """A level on the way up: each residual block also reads what the way down left."""

    config: UNetConfig
    level: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        skips: list[Array],
        time: Float[Array, "B T"],
        context: Float[Array, "B L D"],
    ) -> Array:
        """Reads `skips` from the last to the first; doubles the size unless at the finest."""
        for i, skip in enumerate(reversed(skips)):
            x = jnp.concatenate([x, skip], axis=-1)
            x = _resnet(self.config, self.level, i)(x, time)
            if self.config.attention_levels[self.level]:
                x = _transformer(self.config, self.level, i)(x, context)
        if self.level > 0:
            x = Upsample(x.shape[-1], x.dtype, name="upsamplers_0")(x)
        return x


def _matrix_products(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Whether to keep a result: of convolutions and linear layers, not of attention's scores."""
    if primitive.name == "name":  # of `checkpoint_name`
        return parameters["name"] == FLASH_RESIDUALS
    if primitive.name == "dot_general":
        _, (batch_axes, _) = parameters["dimension_numbers"]
        return not batch_axes
    return primitive.name == "conv_general_dilated"


def _remat(block: Any, config: UNetConfig) -> Any:
    if config.remat == "block":
        return nn.remat(block)
    return nn.remat(block, policy=_matrix_products) if config.remat == "dots" else block


def _resnet(config: UNetConfig, level: int, index: int) -> nn.Module:
    return _remat(ResnetBlock, config)(
        config.block_out_channels[level],
        config.norm_groups,
        jnp.dtype(config.dtype),
        name=f"resnets_{index}",
    )


def _transformer(config: UNetConfig, level: int, index: int) -> nn.Module:
    return _remat(Transformer, config)(
        config.heads_of(level),
        config.norm_groups,
        config.linear_projection,
        config.attention,
        jnp.dtype(config.dtype),
        name=f"attentions_{index}",
    )


def _check_shapes(config: UNetConfig, x: tuple[int, ...], context: tuple[int, ...]) -> None:
    multiple = 2 ** (len(config.block_out_channels) - 1)
    if x[1] % multiple or x[2] % multiple:
        raise ValueError(f"latents of {x[1]}x{x[2]}: both must be multiples of {multiple}")
    if x[3] != config.in_channels:
        raise ValueError(f"latents of {x[3]} channels: config.in_channels={config.in_channels}")
    if context[2] != config.context_size:
        raise ValueError(
            f"context of {context[2]} features: config.context_size={config.context_size}"
        )
