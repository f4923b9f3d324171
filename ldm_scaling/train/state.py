"""Everything that a training step changes, and where it lies."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from ldm_scaling.sharding import param_shardings, replicated
from ldm_scaling.types import Params


class TrainState(struct.PyTreeNode):
    """The state of a run after `step` steps.

    Attributes:
      step: int32 scalar, steps done, skipped ones included: it is the position in the data.
      params: the trained parameters.
      opt_state: the optimizer's; its own count is of applied updates only.
      ema_params: moving average of `params`: what is evaluated and exported.
      skipped_in_a_row, skipped_total: int32 scalars, steps not applied (NaN or Inf).
    """

    # Leaves are arrays, abstract arrays or shardings, as the tree is used for all three.
    step: Any
    params: Params
    opt_state: Any
    ema_params: Params
    skipped_in_a_row: Any
    skipped_total: Any


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; pure."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),  # its own buffers, so that both can be donated
        skipped_in_a_row=zero,
        skipped_total=zero,
    )


def state_shardings(
    mesh: Mesh, state: TrainState, optimizer: optax.GradientTransformation, min_size: int
) -> TrainState:
    """Shardings of an (abstract) state: optimizer moments and EMA follow their parameter."""
    params = param_shardings(mesh, state.params, min_size)
    scalar = replicated(mesh)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        params,
        transform_non_params=lambda _: scalar,
    )
    return TrainState(
        step=scalar,
        params=params,
        opt_state=opt_state,
        ema_params=params,
        skipped_in_a_row=scalar,
        skipped_total=scalar,
    )


def abstract_state(state: Any, shardings: Any) -> Any:
    """`jax.ShapeDtypeStruct`s that carry `shardings`: what a checkpoint is restored into."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
