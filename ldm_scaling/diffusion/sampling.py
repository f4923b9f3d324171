"""Walking a sampler table: the only scan of the library."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ldm_scaling.diffusion.parameterization import check_prediction_type, to_x0
from ldm_scaling.diffusion.randomness import derive, normal
from ldm_scaling.diffusion.schedule import Schedule
from ldm_scaling.diffusion.solvers import SamplerTable
from ldm_scaling.types import Context, DenoiseFn, Keys, Latents, ModelFn, Timesteps


def to_denoiser(
    model_fn: ModelFn, context: Context, schedule: Schedule, prediction_type: str
) -> DenoiseFn:
    """Binds the context and turns raw output into an estimate of x_0.

    Raises:
      ValueError: unknown prediction type, or eps-prediction at zero terminal SNR.
    """
    check_prediction_type(prediction_type, schedule)

    def denoise(x_t: Latents, t: Timesteps) -> Latents:
        output = model_fn(x_t, t, context)
        return to_x0(prediction_type, output, x_t, schedule.alpha(t), schedule.sigma(t))

    return denoise


def initial_noise(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Standard normal x_T [B, *shape], float32; example i's depends on keys[i] only."""
    return normal(derive(keys, "initial noise"), shape)


def sample(denoise: DenoiseFn, table: SamplerTable, x_T: Latents, keys: Keys) -> Latents:
    """Draws x_0 by walking the table from x_T.

    Args:
      denoise: (x_t [B, H, W, C], t [B] int32) -> estimate of x_0.
      table: the steps. Pass it through jit as an argument: sampler, spacing, and (padded, see
        `solvers.pad`) the number of steps are data and need no second compilation.
      x_T: initial noise, see `initial_noise`.
      keys: typed keys [B], one per example. The noise of a step is a function of the example's
        key and the row's index, so it is the same in any batch and under any padding.

    Returns:
      x_0 [B, H, W, C] in float32 (or the wider type of x_T), whatever the network computes in.
    """
    keys = derive(keys, "step noise")

    def step_noise(index):
        return normal(jax.vmap(jax.random.fold_in, (0, None))(keys, index), x_T.shape[1:])

    return _walk(denoise, table, x_T, step_noise)


def _walk(
    denoise: DenoiseFn,
    table: SamplerTable,
    x_T: Latents,
    step_noise: Callable[[Int[Array, ""]], Latents],
) -> Latents:
    dtype = jnp.promote_types(x_T.dtype, jnp.float32)
    batch = x_T.shape[0]

    def step(carry, index, row: SamplerTable):
        x, x0_prev = carry
        x0 = denoise(x, jnp.full((batch,), row.timestep, jnp.int32)).astype(dtype)
        a, b, c, d = (jnp.asarray(weight, dtype) for weight in (row.a, row.b, row.c, row.d))
        return a * x + b * x0 + c * x0_prev + d * step_noise(index).astype(dtype), x0

    def body(carry, indexed_row):
        index, row = indexed_row
        # A padded row costs a predicate, not a network call.
        carry = jax.lax.cond(row.active, step, lambda carry, *_: carry, carry, index, row)
        return carry, None

    x = x_T.astype(dtype)
    table = jax.tree.map(jnp.asarray, table)
    indices = jnp.arange(table.timestep.shape[0])
    (x, _), _ = jax.lax.scan(body, (x, jnp.zeros_like(x)), (indices, table))
    return x
