"""One training step: gradients, guard against NaN, update, moving average. Pure and jitted once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_scaling.sharding import (
    MIN_SHARD_SIZE,
    batch_sharding,
    param_shardings,
    replicated,
    within,
)
from ldm_scaling.tasks.base import Task
from ldm_scaling.train.optimizer import make_optimizer
from ldm_scaling.train.state import TrainState, abstract_state, init_state, state_shardings
from ldm_scaling.types import Batch, Keys, Params

StepFn = Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, jax.Array]]]


class Program(NamedTuple):
    """The jitted functions of a run and the shardings they agree on.

    Attributes:
      init: () -> TrainState, laid out as `state`.
      step: (state, frozen, batch) -> (state, metrics); `state` is donated.
      evaluate: (params, frozen, batch) -> metrics, with the same draws for an example each time.
      state: abstract TrainState with shardings.
      frozen: shardings of the task's frozen parameters.
    """

    init: Callable[[], TrainState]
    step: jax.stages.Wrapped
    evaluate: jax.stages.Wrapped
    state: TrainState
    frozen: Any


def build(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    ema_decay: float,
    accumulate: int = 1,
    min_shard_size: int = MIN_SHARD_SIZE,
    tpu_options: str = "",
) -> Program:
    """Lays a task's training out on a mesh; allocates nothing, so it serves compiling alone too.

    Args:
      tpu_options: "name=value,name=value" for the TPU's compiler, of the step alone; nothing else
        has such options, so they are left out where the mesh is of no TPUs.

    Raises ValueError for `tpu_options` of another form.
    """
    options = _parse_options(tpu_options)

    def init() -> TrainState:
        return init_state(task.init(jax.random.key(seed)), optimizer)

    abstract = jax.eval_shape(init)
    shardings = state_shardings(mesh, abstract, optimizer, min_shard_size)
    frozen = param_shardings(mesh, task.frozen, min_shard_size)
    step = make_step(task, optimizer, seed=seed, ema_decay=ema_decay, accumulate=accumulate)
    step = jax.jit(
        within(mesh, step),
        in_shardings=(shardings, frozen, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=options if mesh.devices.flat[0].platform == "tpu" else None,
    )

    def evaluate(params: Params, frozen: Params, batch: Batch) -> dict[str, jax.Array]:
        step = jnp.zeros((), jnp.int32)
        keys = example_keys(seed, batch["example_id"], step)
        loss, metrics = task.loss(params, frozen, batch, keys, step)
        return {**metrics, "loss": loss}

    return Program(
        init=jax.jit(init, out_shardings=shardings),
        step=step,
        evaluate=jax.jit(
            within(mesh, evaluate),
            in_shardings=(shardings.params, frozen, batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        ),
        state=abstract_state(abstract, shardings),
        frozen=frozen,
    )


def build_from(config: ConfigDict, task: Task, mesh: Mesh) -> Program:
    """`build` with a run's own optimizer, seed, average and accumulation."""
    return build(
        task,
        make_optimizer(config.optimizer),
        mesh,
        seed=config.seed,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
        tpu_options=config.tpu_options,
    )


def _parse_options(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if text]
    if not all(name.strip() and value.strip() for name, _, value in pairs):
        raise ValueError(
            f"tpu_options={text!r}: give name=value, several with commas between them, such as "
            "xla_tpu_scoped_vmem_limit_kib=32768"
        )
    return {name.strip(): value.strip() for name, _, value in pairs}


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    accumulate: int = 1,
) -> StepFn:
    """The pure step function.

    A step whose loss or gradients hold a NaN or Inf changes only the counters: parameters,
    optimizer and EMA stay as they were, and the next step sees the next batch.
    """

    def step(
        state: TrainState, frozen: Params, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        keys = example_keys(seed, batch["example_id"], state.step)
        loss, metrics, grads = _gradients(task, state, frozen, batch, keys, accumulate)
        grad_norm = optax.tree_utils.tree_norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(state.step - state.skipped_total, ema_decay)
        ema_params = jax.tree.map(
            lambda ema, p: ema + (1 - decay) * (p - ema), state.ema_params, params
        )
        kept = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state, ema_params),
            (state.params, state.opt_state, state.ema_params),
        )
        bad = (~good).astype(jnp.int32)
        state = TrainState(
            step=state.step + 1,
            params=kept[0],
            opt_state=kept[1],
            ema_params=kept[2],
            skipped_in_a_row=(state.skipped_in_a_row + 1) * bad,
            skipped_total=state.skipped_total + bad,
        )
        return state, {
            **metrics,
            "loss": loss,
            "grad_norm": grad_norm,
            "skipped_in_a_row": state.skipped_in_a_row,
            "skipped_total": state.skipped_total,
        }

    return step


def example_keys(seed: int, example_id: jax.Array, step: jax.Array) -> Keys:
    """Typed keys [B]: the randomness of an example in a step, whatever batch or device it is on."""
    base = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(base, i), step))(example_id)


def ema_decay_at(updates: jax.Array, decay: float) -> jax.Array:
    """min(decay, (1 + s) / (10 + s)): a young average forgets the random start quickly.

    The warm-up of TensorFlow's ExponentialMovingAverage with `num_updates`; float32 scalar.
    """
    s = jnp.asarray(updates, jnp.float32)
    return jnp.minimum(decay, (1 + s) / (10 + s))


def _gradients(
    task: Task, state: TrainState, frozen: Params, batch: Batch, keys: Keys, accumulate: int
) -> tuple[jax.Array, dict[str, jax.Array], Params]:
    """Mean loss, mean metrics and mean gradient over `accumulate` equal parts of the batch."""
    grad_fn = jax.value_and_grad(task.loss, has_aux=True)
    if accumulate == 1:
        (loss, metrics), grads = grad_fn(state.params, frozen, batch, keys, state.step)
        return loss, dict(metrics), grads

    def split(x: jax.Array) -> jax.Array:
        # Every device's examples are dealt out over all parts, so that no part moves data.
        return x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        (loss, metrics), grads = grad_fn(state.params, frozen, *part, state.step)
        return jax.tree.map(jnp.add, total, (loss, dict(metrics), grads)), None

    parts = jax.tree.map(split, (batch, keys))
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(lambda p: grad_fn(state.params, frozen, *p, state.step), first)
    (loss, metrics), grads = shapes
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss, dict(metrics), grads))
    total, _ = jax.lax.scan(add, zeros, parts)
    loss, metrics, grads = jax.tree.map(lambda x: x / accumulate, total)
    return loss, metrics, grads
