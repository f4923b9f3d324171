"""The one training loop.

A run is a folder. Whatever happened before, `train` brings it to `config.num_steps`: batches,
keys and schedules are functions of the step, so the newest checkpoint is all that is needed, and a
run that was stopped ends with bitwise the same parameters as one that was not.

All processes of a run go through the same lines. Those that only the first one carries out
(records, exports) say so where they are; a collective that one process skips would hang the rest.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from logging import WARNING
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.checkpoint.state import Checkpoints
from ldm_scaling.hosts import all_say, check_agreed, is_first, wait_for_all
from ldm_scaling.sharding import check_batch, make_mesh, put_batch, put_whole
from ldm_scaling.tasks.base import Task
from ldm_scaling.train.compilation import cached_compilation
from ldm_scaling.train.export import export
from ldm_scaling.train.goodput import Goodput
from ldm_scaling.train.interrupt import Interrupt
from ldm_scaling.train.report import PROGRESS, Report
from ldm_scaling.train.state import TrainState
from ldm_scaling.train.step import build_from
from ldm_scaling.train.workdir import ForeignWorkdirError, Workdir, claim_workdir
from ldm_scaling.types import Batch, Params


@runtime_checkable
class Batches(Protocol):
    """The part of `data.pipeline.Pipeline` that the loop needs."""

    def batch(self, step: int) -> Batch:
        """This process' `sharding.local_rows` of batch number `step`, pure in the step."""

    def iterate(self, first_step: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch) from `first_step` on, prefetched; a generator, closed when done."""


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> TrainState:
    """Trains what `config` describes in `workdir`, or goes on where an earlier call stopped.

    Args:
      config: as `configs/pretrain.py` and `configs/autoencoder.py` make it.
      workdir: a folder, or one of a bucket (`gs://...`); gets config.json, checkpoints/, export/,
        compiled/, training.jsonl, progress.json and TensorBoard files. All processes share it.

    Raises:
      ForeignWorkdirError: the folder holds a run of another config, or with other frozen weights.
      ValueError: the processes were given different configs or frozen weights, or do not share
        the folder.
      BadStepsError: too many steps in a row had a NaN or Inf.
      SystemExit: after SIGTERM (code 0) or SIGINT (130); the state is saved.
    """
    from ldm_scaling.train.assemble import assemble

    _quiet_orbax()
    goodput, place = Goodput(), Workdir(workdir)
    check_agreed("the config", str(config.to_dict()))
    if is_first():
        claim_workdir(place.folder, config)
        place.fetch()
    wait_for_all("the workdir is claimed")
    if not all_say((place.folder / "config.json").exists()):
        raise ValueError(
            f"workdir={place.folder}: not every process finds there what the first has written; "
            "give a folder that all share, or gs://BUCKET/FOLDER"
        )
    with cached_compilation(config.get("compilation_cache", "workdir"), place.folder):
        mesh = make_mesh(**config.mesh)
        task, training, validation = assemble(config, place.local, mesh)
        return run(config, place, mesh, task, training, validation, goodput)


def run(
    config: ConfigDict,
    workdir: Workdir | str | os.PathLike[str],
    mesh: Mesh,
    task: Task,
    training: Batches,
    validation: Batches | None = None,
    goodput: Goodput | None = None,
) -> TrainState:
    """The loop itself, for any task and any batches; see `train`."""
    _check(config, mesh)
    goodput = goodput or Goodput()
    workdir = workdir if isinstance(workdir, Workdir) else Workdir(workdir)
    program = build_from(config, task, mesh)
    train_step = goodput.compiling(program.step)
    evaluate = goodput.compiling(program.evaluate)

    def place(batch: Batch) -> Batch:
        return put_batch(mesh, task.host_batch(batch))

    with contextlib.ExitStack() as stack:
        if is_first():
            stack.callback(workdir.publish)  # the very last: all that was written
        # Entered first, left last: a save under way is finished whatever ends the run.
        checkpoints = stack.enter_context(
            Checkpoints(workdir.folder / "checkpoints", keep=config.keep_checkpoints)
        )
        # Go on from the newest whole checkpoint, else start from the seed.
        restored = checkpoints.restore_latest(program.state)
        done, state, meta = restored or (0, goodput.compiling(program.init)(), {})
        frozen_hash = _checked_hash(task.frozen, meta, workdir)
        frozen = put_whole(task.frozen, program.frozen)
        goodput.resume(workdir.local / PROGRESS, done)
        logging.info("Training from step %d to %d on %s", done, config.num_steps, mesh)
        report = stack.enter_context(
            Report(config, workdir, task, program.state.params, done, goodput)
        )
        batches = training.iterate(done)
        stack.callback(getattr(batches, "close", lambda: None))
        interrupt = stack.enter_context(Interrupt())
        stack.enter_context(goodput.spent("step"))

        def save() -> None:
            report.flush()  # raises before anything is saved that nobody should go on from
            with goodput.saving(done):
                checkpoints.save(done, state, {"frozen": frozen_hash})
            report.saved(done)
            if is_first():
                workdir.publish()

        saved = done
        while done < config.num_steps and not interrupt.requested(done):
            with goodput.spent("input"):
                _, batch = next(batches)
                placed = place(batch)
            state, metrics = train_step(state, frozen, placed)
            done += 1
            report.add(done, metrics)

            if validation and _due(done, config.eval_every, config.num_steps):
                report.flush()
                with goodput.spent("evaluation"):
                    held_out = (place(validation.batch(i)) for i in range(config.eval_batches))
                    found = _evaluate(evaluate, state.ema_params, frozen, held_out)
                report.evaluated(done, found, config.eval_batches * config.batch_size)
            if done in config.export_steps or _due(done, config.export_every):
                with goodput.spent("export"):
                    folder = workdir.local / "export" / f"step_{done:06d}"
                    export(config, task, mesh, state, folder)
            if _due(done, config.checkpoint_every, config.num_steps):
                save()
                saved = done

        if done > saved:
            save()
        with goodput.spent("checkpoint"):
            checkpoints.wait()
        if done == config.num_steps:
            with goodput.spent("export"):
                export(config, task, mesh, state, workdir.local / "export" / "final")
        report.saved(done)
    if done < config.num_steps:
        logging.warning(
            "%s: stopped after step %d of %d and saved; give the same command again to go on",
            interrupt.signal_name, done, config.num_steps,
        )  # fmt: skip
        raise SystemExit(interrupt.exit_code)
    return state


def _quiet_orbax() -> None:
    """Keeps Orbax's forty lines a checkpoint out of the log; its warnings stay."""
    logging.get_absl_logger().addFilter(_not_orbax_chatter)


def _not_orbax_chatter(record: Any) -> bool:
    return record.levelno >= WARNING or "orbax" not in record.pathname


def _check(config: ConfigDict, mesh: Mesh) -> None:
    for field in ("num_steps", "log_every", "checkpoint_every", "accumulate", "max_bad_steps"):
        if config[field] < 1:
            raise ValueError(f"{field}={config[field]}: must be at least 1")
    check_batch(mesh, config.batch_size, config.accumulate)


def _checked_hash(frozen: Params, meta: Mapping[str, Any], workdir: Workdir) -> str:
    """The hash of the frozen weights, where all processes and all earlier runs had the same."""
    found = weights_hash(frozen)
    check_agreed("the frozen weights", found)
    if meta.get("frozen", found) != found:
        raise ForeignWorkdirError(
            f"workdir={workdir.folder} was trained with other frozen weights ({meta['frozen']}) "
            f"than those given now ({found}): an autoencoder's or text encoder's folder has "
            "changed; bring the old weights back, or give another workdir"
        )
    return found


def _due(step: int, every: int, last: int | None = None) -> bool:
    """Whether something that happens every so many steps (0: never) happens after `step`."""
    return bool(every) and (step % every == 0 or step == last)


def _evaluate(
    evaluate: Any, params: Params, frozen: Params, batches: Iterable[Batch]
) -> dict[str, float]:
    """Mean metrics over batches of equal size that are the same each time."""
    found = [jax.device_get(evaluate(params, frozen, batch)) for batch in batches]
    return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}
