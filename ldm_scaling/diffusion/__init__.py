"""The diffusion core: what noise is, what a network's output means, and how to sample with it.

Arrays only: no modules, no parameters, no files. A `Schedule` is the sole truth about noise
levels; `parameterization` is the only place that knows prediction types; guidance decorates model
functions; a sampler is a `SamplerTable` of coefficients; and `sample` is the only loop. Because a
table, a guidance rate and the keys are data, one compiled program serves a whole sweep.
"""

from ldm_scaling.diffusion.guidance import (
    check_guidance_rate,
    classifier_free_guidance,
    rescaled_guidance,
)
from ldm_scaling.diffusion.loss import (
    WEIGHTINGS,
    diffuse,
    diffusion_loss,
    draw_noise,
    draw_timesteps,
    loss_weight,
)
from ldm_scaling.diffusion.parameterization import (
    PREDICTION_TYPES,
    check_prediction_type,
    error_gain,
    to_x0,
    training_target,
    x0_to_epsilon,
)
from ldm_scaling.diffusion.sampling import initial_noise, sample, to_denoiser
from ldm_scaling.diffusion.schedule import NUM_TIMESTEPS, SCHEDULES, Schedule
from ldm_scaling.diffusion.solvers import (
    BUCKETS,
    SAMPLERS,
    SPACINGS,
    SamplerTable,
    bucket,
    ddim,
    ddpm,
    dpmpp_2m,
    pad,
    sampler_table,
    spaced_timesteps,
)

__all__ = [
    "BUCKETS",
    "NUM_TIMESTEPS",
    "PREDICTION_TYPES",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "WEIGHTINGS",
    "SamplerTable",
    "Schedule",
    "bucket",
    "check_guidance_rate",
    "check_prediction_type",
    "classifier_free_guidance",
    "ddim",
    "ddpm",
    "diffuse",
    "diffusion_loss",
    "dpmpp_2m",
    "draw_noise",
    "draw_timesteps",
    "error_gain",
    "initial_noise",
    "loss_weight",
    "pad",
    "rescaled_guidance",
    "sample",
    "sampler_table",
    "spaced_timesteps",
    "to_denoiser",
    "to_x0",
    "training_target",
    "x0_to_epsilon",
]
