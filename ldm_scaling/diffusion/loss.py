"""The denoising loss and its weightings over noise levels.

Weightings are defined by the weight they put on the squared error of x_0, as a function of the
signal-to-noise ratio, and expressed in the network's own target. The noise and the timestep of an
example come from that example's key alone, so they do not depend on the batch it is in.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ldm_scaling.diffusion.parameterization import (
    check_prediction_type,
    error_gain,
    per_example,
    training_target,
)
from ldm_scaling.diffusion.randomness import derive, normal
from ldm_scaling.diffusion.schedule import NUM_TIMESTEPS, Schedule
from ldm_scaling.naming import check_name
from ldm_scaling.types import Context, Keys, Latents, ModelFn

WEIGHTINGS = ("uniform", "min_snr", "truncated_snr")


def diffusion_loss(
    model_fn: ModelFn,
    schedule: Schedule,
    prediction_type: str,
    x_0: Latents,
    context: Context,
    keys: Keys,
    *,
    weighting: str = "uniform",
    gamma: float = 5.0,
) -> Float[Array, "B"]:
    """Weighted squared error of every example, averaged over its elements.

    Args:
      model_fn: (x_t, t [B] int32, context) -> raw output of the shape of x_t.
      schedule, prediction_type: what x_t is and what the output means.
      x_0: clean latents [B, H, W, C].
      context: [B, L, D].
      keys: typed keys [B], one per example and step.
      weighting: one of `WEIGHTINGS`, see `loss_weight`.
      gamma: the cap of "min_snr".

    Returns:
      float32 [B]. The batch's loss is its mean.

    Raises:
      ValueError: unknown prediction type or weighting, or eps-prediction at zero terminal SNR.
    """
    check_prediction_type(prediction_type, schedule)
    x_0 = x_0.astype(jnp.float32)
    t = draw_timesteps(keys)
    noise = draw_noise(keys, x_0.shape[1:])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    output = model_fn(diffuse(x_0, noise, alpha, sigma), t, context).astype(jnp.float32)
    error = output - training_target(prediction_type, x_0, noise, alpha, sigma)
    weight = loss_weight(weighting, prediction_type, schedule.log_snr(t), gamma=gamma)
    return weight * jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def draw_timesteps(keys: Keys) -> Int[Array, "B"]:
    """One uniform timestep in 0..999 per example, int32."""
    keys = derive(keys, "timestep")
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, NUM_TIMESTEPS))(keys)


def draw_noise(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Standard normal noise [B, *shape] for training, float32, one draw per example."""
    return normal(derive(keys, "training noise"), shape)


def diffuse(
    x_0: Float[Array, "B *S"],
    noise: Float[Array, "B *S"],
    alpha: Float[Array, "B"],
    sigma: Float[Array, "B"],
) -> Float[Array, "B *S"]:
    """x_t = alpha x_0 + sigma noise."""
    return per_example(alpha, x_0) * x_0 + per_example(sigma, x_0) * noise


def loss_weight(
    weighting: str,
    prediction_type: str,
    log_snr: Float[Array, "B"],
    *,
    gamma: float = 5.0,
) -> Float[Array, "B"]:
    """Weight of the squared error of the raw output at a noise level.

    "uniform" weighs the raw output with 1 (arXiv:2006.11239, eq. 14). On x_0, "min_snr" weighs
    with min(SNR, gamma) (arXiv:2303.09556, eq. 8) and "truncated_snr" with max(SNR, 1)
    (arXiv:2202.00512, section 4).
    """
    check_name("weighting", weighting, WEIGHTINGS)
    if weighting == "uniform":
        return jnp.ones_like(log_snr)
    snr = jnp.exp(log_snr)
    weight = jnp.minimum(snr, gamma) if weighting == "min_snr" else jnp.maximum(snr, 1.0)
    return weight / error_gain(prediction_type, snr)
