"""Models that differ by one number: the paper's family (arXiv:2404.01367, Table 1) and ours.

`unet_config(width)` is SD v1.5's UNet with channels (c, 2c, 4c, 4c); `micro_config(width)` has the
same form at a size that two CPU cores can train. The paper does not state the context size; 1024
is the one that reproduces the parameter counts of all its rows.
"""

import dataclasses
from typing import Any

from ldm_scaling.naming import check_name
from ldm_scaling.unet.config import UNetConfig

WIDTHS = (64, 96, 128, 160, 192, 224, 256, 288, 320, 512, 768)
REFERENCE_WIDTH = 320  # SD v1.5's; costs of the paper's family are told relative to it
MICRO_WIDTHS = (8, 16, 32, 48)
MICRO_REFERENCE_WIDTH = MICRO_WIDTHS[-1]


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """A column of the paper's Table 1, as printed.

    Attributes:
      parameters: number of parameters, rounded as the paper does ("39M", "2B").
      gflops: GFLOPs of one evaluation.
      normalized_cost: cost of one evaluation relative to width 320.
      fid, clip: COCO, 50 DDIM steps, guidance 7.5; CLIP is an unscaled cosine.
      misprints: fields that contradict the rest of the paper and our own count.
    """

    parameters: float
    gflops: float
    normalized_cost: float
    fid: float
    clip: float
    misprints: tuple[str, ...] = ()


PUBLISHED = {
    # 25.3 GFLOPs contradicts the row's own cost: 0.07 x 789.3 = 55; we count 53.
    64: PublishedRow(39e6, 25.3, 0.07, 25.30, 0.305, misprints=("gflops",)),
    96: PublishedRow(83e6, 102.7, 0.13, 24.30, 0.308),
    128: PublishedRow(145e6, 161.5, 0.20, 24.18, 0.310),
    160: PublishedRow(223e6, 233.5, 0.30, 23.76, 0.310),
    192: PublishedRow(318e6, 318.5, 0.40, 22.83, 0.311),
    224: PublishedRow(430e6, 416.6, 0.53, 22.35, 0.312),
    256: PublishedRow(558e6, 527.8, 0.67, 22.15, 0.312),
    288: PublishedRow(704e6, 652.0, 0.83, 21.82, 0.312),
    320: PublishedRow(866e6, 789.3, 1.00, 21.55, 0.312),
    512: PublishedRow(2e9, 1887.5, 2.39, 20.98, 0.312),
    768: PublishedRow(5e9, 4082.6, 5.17, 20.14, 0.314),
}


def unet_config(width: int, **overrides: Any) -> UNetConfig:
    """Config of the paper's UNet of that width.

    Args:
      width: channels of the finest level, one of `WIDTHS`.
      **overrides: fields of `UNetConfig` to set otherwise.

    Raises:
      ValueError: for a width that is not in the family, or a field that does not exist; names
        the nearest one.
    """
    _check_width("width", width, WIDTHS)
    fields = {"block_out_channels": (width, 2 * width, 4 * width, 4 * width)}
    return _build(fields, overrides)


def micro_config(width: int, **overrides: Any) -> UNetConfig:
    """Config of the micro UNet of that width: three levels, 8x8x16 latents, MiniLM's context.

    Args:
      width: channels of the finest level, one of `MICRO_WIDTHS`.
      **overrides: fields of `UNetConfig` to set otherwise.

    Raises:
      ValueError: as `unet_config`.
    """
    _check_width("micro width", width, MICRO_WIDTHS)
    fields = {
        "in_channels": 16,
        "out_channels": 16,
        "sample_size": 8,
        "block_out_channels": (width, 2 * width, 4 * width),
        "layers_per_block": 1,
        "attention_levels": (True, True, False),
        "heads": 4,
        "context_size": 384,
        "norm_groups": 4,
        "prediction_type": "v_prediction",
    }
    return _build(fields, overrides)


def _check_width(name: str, width: int, widths: tuple[int, ...]) -> None:
    if width not in widths:
        nearest = min(widths, key=lambda w: abs(w - width))
        raise ValueError(f"{name}={width}: the nearest is {nearest}, all are {widths}")


def _build(fields: dict[str, Any], overrides: dict[str, Any]) -> UNetConfig:
    names = [field.name for field in dataclasses.fields(UNetConfig)]
    for name in overrides:
        check_name("field", name, names)
    return UNetConfig(**{**fields, **overrides})
