"""What a UNet is: every number that decides its parameters and its computation."""

import dataclasses

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DTYPES = ("float32", "bfloat16")
REMAT = ("none", "block", "dots", "offload")
ATTENTION_KERNELS = ("auto", "xla", "chunked", "flash")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A text-conditioned UNet in the form of Stable Diffusion's (arXiv:2112.10752).

    Attributes:
      in_channels, out_channels: channels of the latents that go in and of the prediction.
      sample_size: height and width of the latents it is made for (it runs on others too).
      block_out_channels: channels of each level, finest first.
      layers_per_block: residual blocks of a level on the way down; one more on the way up.
      attention_levels: which levels have transformer blocks; the middle always has one.
      heads: attention heads, one number or one a level; None where `head_size` is given.
      head_size: channels of a head, the same at all levels; None where `heads` is given.
      context_size: features of a text token.
      linear_projection: project into and out of a transformer by a linear layer (SD 2.x) rather
        than by a 1x1 convolution (SD 1.x). The same mathematics, other shapes in a checkpoint.
      norm_groups: groups of every group normalisation.
      prediction_type: what the output means, in diffusers' words. The network itself does not
        look at it; whoever trains or samples it does.
      dtype: of the computation. Parameters, normalisation statistics and softmax are float32.
      remat: what the backward pass finds in memory. "none": everything; "dots": the results of
        convolutions and matrix products, the rest is computed again; "block": the inputs of
        residual blocks and transformers; "offload": these inputs, in the host's memory (needs a
        platform with one of its own: TPU or GPU).
      attention: kernel, see `ldm_scaling.unet.attention`.

    Raises:
      ValueError: for fields that do not fit together.
    """

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 64
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    heads: int | tuple[int, ...] | None = 8
    head_size: int | None = None
    context_size: int = 1024
    linear_projection: bool = False
    norm_groups: int = 32
    prediction_type: str = "epsilon"
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        levels = len(self.block_out_channels)
        _choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        _choice("dtype", self.dtype, DTYPES)
        _choice("remat", self.remat, REMAT)
        _choice("attention", self.attention, ATTENTION_KERNELS)
        if len(self.attention_levels) != levels:
            raise ValueError(
                f"attention_levels={self.attention_levels}: needs {levels} entries, one for each "
                f"of block_out_channels={self.block_out_channels}"
            )
        if (self.heads is None) == (self.head_size is None):
            raise ValueError(
                f"heads={self.heads}, head_size={self.head_size}: give exactly one, None the other"
            )
        if isinstance(self.heads, tuple) and len(self.heads) != levels:
            raise ValueError(f"heads={self.heads}: needs one number, or {levels}, one a level")
        if self.layers_per_block < 1:
            raise ValueError(f"layers_per_block={self.layers_per_block}: needs at least 1")
        for level, channels in enumerate(self.block_out_channels):
            if channels % self.norm_groups:
                raise ValueError(
                    f"norm_groups={self.norm_groups}: must divide the {channels} channels of "
                    f"level {level}"
                )
            has_heads = self.attention_levels[level] or level == levels - 1
            unit = self.head_size or self.heads_of(level)
            if has_heads and channels % unit:
                name = "head_size" if self.head_size else "heads"
                raise ValueError(
                    f"{name}={unit}: must divide the {channels} channels of level {level}"
                )

    def heads_of(self, level: int) -> int:
        """Number of attention heads at `level` (0 is the finest)."""
        if self.head_size is not None:
            return self.block_out_channels[level] // self.head_size
        if isinstance(self.heads, tuple):
            return self.heads[level]
        assert self.heads is not None  # __post_init__ saw to it
        return self.heads


def _choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field}={value!r}: choose from {', '.join(choices)}")
