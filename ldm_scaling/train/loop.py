"""The one training loop.

A run is a folder. Whatever happened before, `train` brings it to `config.num_steps`: batches,
keys and schedules are functions of the step, so the newest checkpoint is all that is needed, and a
run that was stopped ends with bitwise the same parameters as one that was not.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from logging import WARNING
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.checkpoint.state import Checkpoints
from ldm_scaling.sharding import make_mesh, put_batch
from ldm_scaling.tasks.base import Task
from ldm_scaling.train.interrupt import Interrupt
from ldm_scaling.train.optimizer import make_optimizer
from ldm_scaling.train.report import Report, training_flops
from ldm_scaling.train.state import TrainState
from ldm_scaling.train.step import Program, build
from ldm_scaling.train.workdir import ForeignWorkdirError, claim_workdir
from ldm_scaling.types import Batch, Params


@runtime_checkable
class Batches(Protocol):
    """The part of `data.pipeline.Pipeline` that the loop needs."""

    def batch(self, step: int) -> Batch:
        """Batch number `step`, pure in the step."""

    def iterate(self, first_step: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch) from `first_step` on, prefetched; a generator, closed when done."""


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> TrainState:
    """Trains what `config` describes in `workdir`, or goes on where an earlier call stopped.

    Args:
      config: as `configs/pretrain.py` and `configs/autoencoder.py` make it.
      workdir: gets config.json, checkpoints/, export/, training.jsonl and TensorBoard files.

    Raises:
      ForeignWorkdirError: the folder holds a run of another config, or with other frozen weights.
      BadStepsError: too many steps in a row had a NaN or Inf.
      SystemExit: after SIGINT or SIGTERM; the state is saved.
    """
    from ldm_scaling.train.assemble import assemble

    _quiet_orbax()
    claim_workdir(Path(workdir), config)
    mesh = make_mesh(**config.mesh)
    task, training, validation = assemble(config, Path(workdir), mesh)
    return run(config, Path(workdir), mesh, task, training, validation)


def run(
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    task: Task,
    training: Batches,
    validation: Batches | None = None,
) -> TrainState:
    """The loop itself, for any task and any batches; see `train`."""
    _check(config, mesh)
    program = build(
        task,
        make_optimizer(config.optimizer),
        mesh,
        seed=config.seed,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
    )

    def place(batch: Batch) -> Batch:
        return put_batch(mesh, task.host_batch(batch))

    with contextlib.ExitStack() as stack:
        # Entered first, left last: a save under way is finished whatever ends the run.
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
        )
        # Go on from the newest whole checkpoint, else start from the seed.
        restored = checkpoints.restore_latest(program.state)
        done, state, meta = restored or (0, program.init(), {})
        frozen_hash = weights_hash(task.frozen)
        if meta.get("frozen", frozen_hash) != frozen_hash:
            raise ForeignWorkdirError(
                f"workdir={workdir} was trained with other frozen weights ({meta['frozen']}) than "
                f"those given now ({frozen_hash}): an autoencoder's or text encoder's folder has "
                "changed; bring the old weights back, or give another workdir"
            )
        frozen = jax.device_put(task.frozen, program.frozen)
        logging.info("Training from step %d to %d on %s", done, config.num_steps, mesh)
        report = stack.enter_context(Report(config, workdir, task, program.state.params, done))
        batches = training.iterate(done)
        stack.callback(getattr(batches, "close", lambda: None))
        interrupt = stack.enter_context(Interrupt())

        saved = done
        while done < config.num_steps and not interrupt.signal_name:
            _, batch = next(batches)
            state, metrics = program.step(state, frozen, place(batch))
            done += 1
            report.add(done, metrics)

            if validation and _due(done, config.eval_every, config.num_steps):
                report.flush()
                held_out = (place(validation.batch(i)) for i in range(config.eval_batches))
                found = _evaluate(program, state.ema_params, frozen, held_out)
                report.evaluated(done, found, config.eval_batches * config.batch_size)
            if done in config.export_steps or _due(done, config.export_every):
                _export(config, task, state, workdir / "export" / f"step_{done:06d}")
            if _due(done, config.checkpoint_every, config.num_steps):
                report.flush()  # raises before anything is saved that nobody should go on from
                checkpoints.save(done, state, {"frozen": frozen_hash})
                saved = done

        report.flush()
        if done > saved:
            checkpoints.save(done, state, {"frozen": frozen_hash})
    if done < config.num_steps:
        raise SystemExit(
            f"{interrupt.signal_name}: stopped after step {done} of {config.num_steps} and saved; "
            "give the same command again to go on"
        )
    _export(config, task, state, workdir / "export" / "final")
    return state


def _quiet_orbax() -> None:
    """Keeps Orbax's forty lines a checkpoint out of the log; its warnings stay."""
    logging.get_absl_logger().addFilter(_not_orbax_chatter)


def _not_orbax_chatter(record: Any) -> bool:
    return record.levelno >= WARNING or "orbax" not in record.pathname


def _check(config: ConfigDict, mesh: Mesh) -> None:
    shards = mesh.shape["replica"] * mesh.shape["fsdp"]
    if config.batch_size % (shards * config.accumulate):
        raise ValueError(
            f"batch_size={config.batch_size}: must be a multiple of replica * fsdp * accumulate = "
            f"{shards} * {config.accumulate}"
        )
    for field in ("num_steps", "log_every", "checkpoint_every", "accumulate", "max_bad_steps"):
        if config[field] < 1:
            raise ValueError(f"{field}={config[field]}: must be at least 1")


def _due(step: int, every: int, last: int | None = None) -> bool:
    """Whether something that happens every so many steps (0: never) happens after `step`."""
    return bool(every) and (step % every == 0 or step == last)


def _evaluate(
    program: Program, params: Params, frozen: Params, batches: Iterable[Batch]
) -> dict[str, float]:
    """Mean metrics over batches of equal size that are the same each time."""
    found = [jax.device_get(program.evaluate(params, frozen, batch)) for batch in batches]
    return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}


def _export(config: ConfigDict, task: Task, state: TrainState, folder: Path) -> None:
    """Writes the moving average in the diffusers layout, whole or not at all."""
    if jax.process_index() > 0:
        return
    step = int(state.step)
    examples = step * config.batch_size
    facts: dict[str, Any] = {
        **task.point,
        **task.facts,
        "step": step,
        "examples": examples,
        "training_flops": training_flops(task, examples),
        "weights": "ema",
    }
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    task.export(jax.device_get(state.ema_params), partial)
    (partial / "training.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    logging.info("Exported the moving average of step %d to %s", step, folder)
