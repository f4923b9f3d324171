"""What we train: the text-conditioned UNet of latent diffusion, in families that differ by width.

`family` names the models, `config` says what one is, `unet`, `blocks` and `attention` compute it,
`flops` tells its cost without allocating a weight. The room knows arrays and configs only: not
where weights come from, what the prediction means, or how it is trained.
"""

from ldm_scaling.unet.config import UNetConfig
from ldm_scaling.unet.family import (
    MICRO_REFERENCE_WIDTH,
    MICRO_WIDTHS,
    PUBLISHED,
    REFERENCE_WIDTH,
    WIDTHS,
    micro_config,
    unet_config,
)
from ldm_scaling.unet.flops import count_flops, forward_flops, normalized_cost, parameter_count
from ldm_scaling.unet.unet import UNet

__all__ = [
    "MICRO_REFERENCE_WIDTH",
    "MICRO_WIDTHS",
    "PUBLISHED",
    "REFERENCE_WIDTH",
    "WIDTHS",
    "UNet",
    "UNetConfig",
    "count_flops",
    "forward_flops",
    "micro_config",
    "normalized_cost",
    "parameter_count",
    "unet_config",
]
