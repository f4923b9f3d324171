"""Classifier-free guidance: model function -> model function. Solvers never hear of it."""

from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from ldm_scaling.diffusion.parameterization import per_example
from ldm_scaling.types import Context, Latents, ModelFn, Timesteps

ScalarOrPerExample: TypeAlias = Real[ArrayLike, ""] | Real[ArrayLike, "B"]


def classifier_free_guidance(
    model_fn: ModelFn,
    rate: ScalarOrPerExample,
    unconditional_context: Float[Array, "#B L D"],
) -> ModelFn:
    """uncond + rate (cond - uncond), from one call on a doubled batch (arXiv:2207.12598, eq. 6).

    Args:
      model_fn: raw output of any prediction type (the formula is the same for eps, x_0 and v,
        as they are affine in each other at fixed x_t).
      rate: guidance rate, scalar or one per example; 1 is no guidance, 0 is unconditional. May be
        traced: a sweep over rates compiles once. Check it on the host with `check_guidance_rate`.
      unconditional_context: the encoded empty prompt, [1, L, D] or [B, L, D].

    Returns:
      A ModelFn with float32 output that calls `model_fn` once on 2B examples.
    """

    def guided(x_t: Latents, t: Timesteps, context: Context) -> Latents:
        unconditional, conditional = _both(model_fn, x_t, t, context, unconditional_context)
        return _guide(unconditional, conditional, rate)

    return guided


def rescaled_guidance(
    model_fn: ModelFn,
    rate: ScalarOrPerExample,
    unconditional_context: Float[Array, "#B L D"],
    phi: ScalarOrPerExample = 0.7,
) -> ModelFn:
    """Guidance whose result keeps the standard deviation of the conditional output.

    phi mixes it (1) with the plain one (0) (arXiv:2305.08891, eq. 14-16, which recommends 0.7).
    Cures the over-exposure of high rates on zero-terminal-SNR models. Arguments otherwise as
    `classifier_free_guidance`.
    """

    def guided(x_t: Latents, t: Timesteps, context: Context) -> Latents:
        unconditional, conditional = _both(model_fn, x_t, t, context, unconditional_context)
        plain = _guide(unconditional, conditional, rate)
        axes = tuple(range(1, plain.ndim))
        gain = jnp.std(conditional, axes) / jnp.maximum(jnp.std(plain, axes), 1e-12)
        share = jnp.asarray(phi, jnp.float32)
        return plain * per_example(share * gain + (1 - share), plain)

    return guided


def check_guidance_rate(rate: Real[ArrayLike, "..."]) -> None:
    """Host-side check of what a user asked for.

    Raises:
      ValueError: a rate is NaN, infinite or negative.
    """
    rates = np.atleast_1d(np.asarray(rate, np.float64))
    bad = rates[~(np.isfinite(rates) & (rates >= 0))]
    if bad.size:
        raise ValueError(
            f"guidance={bad.flat[0]}: a guidance rate is a finite number >= 0 "
            "(1 is no guidance, 7.5 is usual)"
        )


def _both(model_fn, x_t, t, context, unconditional_context) -> tuple[Array, Array]:
    """Unconditional and conditional output, float32, from one call.

    The two halves of an example are neighbours in the doubled batch, not B apart: a batch that is
    sharded over devices then stays where it is.
    """
    unconditional_context = jnp.broadcast_to(unconditional_context, context.shape)
    contexts = jnp.stack([unconditional_context.astype(context.dtype), context], axis=1)
    output = model_fn(
        jnp.repeat(x_t, 2, axis=0),
        jnp.repeat(t, 2, axis=0),
        contexts.reshape(-1, *context.shape[1:]),
    )
    output = output.astype(jnp.float32).reshape(-1, 2, *output.shape[1:])
    return output[:, 0], output[:, 1]


def _guide(unconditional: Array, conditional: Array, rate) -> Array:
    rate = per_example(jnp.asarray(rate, jnp.float32), conditional)
    return unconditional + rate * (conditional - unconditional)
