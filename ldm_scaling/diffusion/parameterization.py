"""What the network predicts. The only place that branches on the prediction type.

With x_t = alpha x_0 + sigma eps and alpha^2 + sigma^2 = 1, "epsilon" is eps (arXiv:2006.11239),
"sample" is x_0, and "v_prediction" is v = alpha eps - sigma x_0 (arXiv:2202.00512, appendix D).
The strings are diffusers'. All arithmetic is float32, also where the network gives bfloat16.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_scaling.diffusion.schedule import Schedule
from ldm_scaling.naming import check_name

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def check_prediction_type(prediction_type: str, schedule: Schedule) -> None:
    """Raises ValueError for an unknown type, or one that cannot work with the schedule."""
    check_name("prediction_type", prediction_type, PREDICTION_TYPES)
    if prediction_type == "epsilon" and schedule.ends_in_pure_noise:
        raise ValueError(
            "prediction_type='epsilon': says nothing about x_0 at the zero terminal SNR of this "
            "schedule; use 'v_prediction' or 'sample'"
        )


def per_example(values: Float[Array, "*B"], like: Float[Array, "..."]) -> Float[Array, "..."]:
    """Appends axes of size 1 to a scalar or [B], so that it broadcasts over `like` [B, ...]."""
    return (
        values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values
    )


def to_x0(
    prediction_type: str,
    output: Float[Array, "B *S"],
    x_t: Float[Array, "B *S"],
    alpha: Float[Array, "B"],
    sigma: Float[Array, "B"],
) -> Float[Array, "B *S"]:
    """The estimate of x_0 that a network's raw output stands for, float32 or wider.

    For "epsilon" x_0 = (x_t - sigma eps) / alpha, which needs alpha > 0.
    """
    check_name("prediction_type", prediction_type, PREDICTION_TYPES)
    output, x_t = _at_least_float32(output), _at_least_float32(x_t)
    alpha, sigma = per_example(alpha, x_t), per_example(sigma, x_t)
    if prediction_type == "epsilon":
        return (x_t - sigma * output) / alpha
    if prediction_type == "sample":
        return output
    return alpha * x_t - sigma * output


def x0_to_epsilon(
    x_0: Float[Array, "B *S"],
    x_t: Float[Array, "B *S"],
    alpha: Float[Array, "B"],
    sigma: Float[Array, "B"],
) -> Float[Array, "B *S"]:
    """The noise that leads from x_0 to x_t: (x_t - alpha x_0) / sigma. Needs sigma > 0."""
    return (x_t - per_example(alpha, x_t) * x_0) / per_example(sigma, x_t)


def training_target(
    prediction_type: str,
    x_0: Float[Array, "B *S"],
    noise: Float[Array, "B *S"],
    alpha: Float[Array, "B"],
    sigma: Float[Array, "B"],
) -> Float[Array, "B *S"]:
    """What the network should have put out for x_t = alpha x_0 + sigma noise."""
    check_name("prediction_type", prediction_type, PREDICTION_TYPES)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x_0
    return per_example(alpha, x_0) * noise - per_example(sigma, x_0) * x_0


def error_gain(prediction_type: str, snr: Float[Array, "B"]) -> Float[Array, "B"]:
    """Squared error of the raw output for a squared error of 1 in x_0.

    SNR for "epsilon", 1 for "sample", SNR + 1 for "v_prediction" (arXiv:2202.00512, section 4).
    It turns a weight on the error of x_0 into one on the error of the raw output.
    """
    check_name("prediction_type", prediction_type, PREDICTION_TYPES)
    if prediction_type == "epsilon":
        return snr
    if prediction_type == "sample":
        return jnp.ones_like(snr)
    return snr + 1


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
