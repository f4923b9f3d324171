"""What a run tells while it runs: terminal, TensorBoard, records."""

import collections
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from ldm_scaling.records import Metric, Record, append_record
from ldm_scaling.tasks.base import Task
from ldm_scaling.types import Params

RUN_AHEAD = 2
"""Steps that the host may be ahead of the device: enough to hide the host, few enough to stop."""


PROFILED_STEPS = 5


class BadStepsError(RuntimeError):
    """Too many steps in a row had a NaN or Inf."""


class Report:
    """Collects each step's metrics and tells their means every `config.log_every` steps.

    Args:
      config: log_every, num_steps, batch_size, seed, max_bad_steps, profile_every.
      workdir: gets TensorBoard files and training.jsonl (records).
      task: for `point` and `forward_flops`.
      params: (abstract) trained parameters, for the overview and the count.
      first_step: where the run goes on.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, task: Task, params: Params, first_step: int
    ) -> None:
        # clu imports TensorFlow, which takes seconds: only a training run pays for it.
        from clu import metric_writers, parameter_overview, periodic_actions

        self._config, self._task = config, task
        self._records = workdir / "training.jsonl"
        self._parameters = sum(p.size for p in jax.tree.leaves(params))
        overview = parameter_overview.get_parameter_overview(params, include_stats=False)
        logging.info("Trained parameters:\n%s", overview)
        quiet = jax.process_index() > 0
        self._writer = metric_writers.create_default_writer(workdir, just_logging=quiet)
        self._actions = [
            periodic_actions.ReportProgress(
                num_train_steps=config.num_steps, every_steps=config.log_every, writer=self._writer
            )
        ]
        if config.profile_every:
            # Of PROFILED_STEPS steps each time, however long they take.
            self._actions.append(
                periodic_actions.Profile(
                    logdir=workdir,
                    num_profile_steps=PROFILED_STEPS,
                    profile_duration_ms=None,
                    first_profile=config.profile_every,
                    every_steps=config.profile_every,
                    every_secs=None,
                )
            )
        # disable=None: a bar only where there is a terminal to draw it on.
        self._bar = tqdm(
            total=config.num_steps, initial=first_step, unit="step", disable=True if quiet else None
        )
        self._pending: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
        self._window: list[dict[str, np.ndarray]] = []
        self._compiled = False
        self._since = time.monotonic()

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        self._writer.close()

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of the step that ended as number `step`; blocks only `RUN_AHEAD` late.

        Raises:
          BadStepsError: after `max_bad_steps` steps in a row that were not applied.
        """
        self._pending.append((step, metrics))
        while len(self._pending) > RUN_AHEAD:
            self._take(*self._pending.popleft())

    def flush(self) -> None:
        """Waits for the steps under way and takes their metrics, too."""
        while self._pending:
            self._take(*self._pending.popleft())

    def evaluated(self, step: int, metrics: Mapping[str, float], examples: int) -> None:
        """Tells the metrics of the moving average on held-out examples."""
        self._writer.write_scalars(step, {f"eval/{name}": v for name, v in metrics.items()})
        found = {name: Metric(float(value)) for name, value in metrics.items()}
        self._record(step, found, examples, {"split": "validation", "weights": "ema"})

    def _take(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        values = {name: np.asarray(v) for name, v in jax.device_get(dict(metrics)).items()}
        self._bar.update()
        if not self._compiled:
            self._bar.unpause()  # the time of compiling says nothing about the time to go
            self._compiled = True
        for action in self._actions:
            action(step)
        if values["skipped_in_a_row"]:
            self._skipped(step, values)
        else:
            self._window.append(values)
        if step % self._config.log_every == 0 or step == self._config.num_steps:
            self._tell(step, values)

    def _skipped(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        in_a_row = int(values["skipped_in_a_row"])
        logging.warning(
            "step %d: not applied, loss=%s grad_norm=%s (%d in a row, %d in all)",
            step, values["loss"], values["grad_norm"], in_a_row, int(values["skipped_total"]),
        )  # fmt: skip
        if in_a_row >= self._config.max_bad_steps:
            raise BadStepsError(
                f"stopped at step {step}: NaN or Inf in loss or gradients for {in_a_row} steps in "
                f"a row (max_bad_steps={self._config.max_bad_steps}); none was applied, and the "
                "last checkpoint is intact. Lower optimizer.learning_rate or optimizer.clip_norm"
            )

    def _tell(self, step: int, last: Mapping[str, np.ndarray]) -> None:
        scalars = {"skipped_total": float(last["skipped_total"])}
        if self._window:
            counters = ("skipped_in_a_row", "skipped_total")
            for name in self._window[0].keys() - set(counters):
                scalars[name] = float(np.mean([values[name] for values in self._window]))
            self._bar.set_postfix(loss=f"{scalars['loss']:.4g}")
            losses = np.array([values["loss"] for values in self._window])
            # 95 % of a normal mean; consecutive losses are nearly independent draws.
            half = 1.96 * losses.std(ddof=1) / len(losses) ** 0.5 if len(losses) > 1 else np.nan
            low, high = (losses.mean() - half, losses.mean() + half)
            interval = (None, None) if np.isnan(half) else (float(low), float(high))
            examples = len(losses) * self._config.batch_size
            self._record(step, {"loss": Metric(scalars["loss"], *interval)}, examples, {})
        self._writer.write_scalars(step, scalars)
        self._window, self._since = [], time.monotonic()

    def _record(
        self, step: int, metrics: dict[str, Metric], examples: int, protocol: dict[str, Any]
    ) -> None:
        if jax.process_index() > 0:
            return
        seconds = time.monotonic() - self._since
        append_record(
            self._records,
            Record(
                kind="training",
                point={**self._task.point, "step": step},
                seed=self._config.seed,
                num_samples=examples,
                metrics=metrics,
                costs={
                    "parameters": float(self._parameters),
                    "training_flops": training_flops(self._task, step * self._config.batch_size),
                },
                protocol=protocol,
                provenance={
                    "jax": jax.__version__,
                    "device": jax.devices()[0].device_kind,
                    "devices": jax.device_count(),
                    "seconds": round(seconds, 3),
                },
            ),
        )


def training_flops(task: Task, examples: int) -> float:
    """FLOPs of training on `examples`: the backward pass costs twice the forward pass."""
    return 3.0 * task.forward_flops * examples
