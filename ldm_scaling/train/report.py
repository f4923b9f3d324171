"""What a run tells while it runs: terminal, TensorBoard, records. Of several processes, the first.

The others only count bad steps, so that all stop together, and need none of TensorFlow for it.
"""

import collections
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from ldm_scaling.hosts import is_first
from ldm_scaling.records import Metric, Record, append_record
from ldm_scaling.tasks.base import Task
from ldm_scaling.train.goodput import Goodput, shares_of
from ldm_scaling.train.workdir import Workdir
from ldm_scaling.types import Params

RUN_AHEAD = 2
"""Steps that the host may be ahead of the device: enough to hide the host, few enough to stop."""

PROFILED_STEPS = 5

PROGRESS = "progress.json"
"""What `Goodput.resume` reads after a restart."""


class BadStepsError(RuntimeError):
    """Too many steps in a row had a NaN or Inf."""


class Report:
    """Collects each step's metrics and tells their means every `config.log_every` steps.

    Args:
      config: log_every, num_steps, batch_size, seed, max_bad_steps, profile_every.
      workdir: gets TensorBoard files, training.jsonl (records) and progress.json; the last is
        published at once, as it is for the run after a death.
      task: for `point` and `forward_flops`.
      params: (abstract) trained parameters, for the overview and the count.
      first_step: where the run goes on.
      goodput: the run's stopwatch.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        task: Task,
        params: Params,
        first_step: int,
        goodput: Goodput,
    ) -> None:
        self._config, self._task, self._goodput, self._workdir = config, task, goodput, workdir
        self._parameters = sum(p.size for p in jax.tree.leaves(params))
        self._first = is_first()
        self._writer: Any = None
        self._actions: list[Callable[[int], Any]] = []
        if self._first:
            self._open(params)
        # disable=None: a bar only where there is a terminal to draw it on.
        self._bar = tqdm(
            total=config.num_steps,
            initial=first_step,
            unit="step",
            disable=None if self._first else True,
        )
        self._pending: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
        self._window: list[dict[str, np.ndarray]] = []
        self._compiled = False
        self._since = time.monotonic()

    def _open(self, params: Params) -> None:
        # clu imports TensorFlow, which takes seconds: only a training run pays for it.
        from clu import metric_writers, parameter_overview, periodic_actions

        config, workdir = self._config, self._workdir.local
        overview = parameter_overview.get_parameter_overview(params, include_stats=False)
        logging.info("Trained parameters:\n%s", overview)
        self._writer = metric_writers.create_default_writer(workdir)
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

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        if self._first:
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
        if self._first:
            self._writer.write_scalars(step, {f"eval/{name}": v for name, v in metrics.items()})
        found = {name: Metric(float(value)) for name, value in metrics.items()}
        self._record("training", step, found, examples, {"split": "validation", "weights": "ema"})

    def saved(self, step: int) -> None:
        """Records where the time went, and notes how far the run is; all processes call it."""
        seconds = self._goodput.seconds()
        input_seconds = seconds["input"]
        if jax.process_count() > 1:  # what another process waits for, the first sees as slow steps
            input_seconds = float(
                np.max(multihost_utils.process_allgather(np.float32(input_seconds)))
            )
        metrics = {f"share_{phase}": Metric(share) for phase, share in shares_of(seconds).items()}
        costs = {
            "seconds": sum(seconds.values()),
            "checkpoint_blocked_seconds": self._goodput.blocked,
            "input_seconds_slowest_process": input_seconds,
            "restarts": self._goodput.restarts,
            "lost_steps": self._goodput.lost_steps,
            "down_seconds": self._goodput.down,
        }
        self._record("goodput", step, metrics, step * self._config.batch_size, {}, costs)
        self._note(step)

    def _note(self, step: int) -> None:
        if self._first:
            file = self._workdir.local / PROGRESS
            self._goodput.write(file, step)
            self._workdir.publish_file(file)

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
        shares = self._goodput.shares()
        scalars |= {f"goodput/{phase}": share for phase, share in shares.items() if share > 0.005}
        if self._window:
            counters = ("skipped_in_a_row", "skipped_total")
            for name in self._window[0].keys() - set(counters):
                scalars[name] = float(np.mean([values[name] for values in self._window]))
            self._bar.set_postfix(
                loss=f"{scalars['loss']:.4g}",
                goodput=f"{shares['step']:.0%}",
                input=f"{shares['input']:.0%}",
            )
            losses = np.array([values["loss"] for values in self._window])
            # 95 % of a normal mean; consecutive losses are nearly independent draws.
            half = 1.96 * losses.std(ddof=1) / len(losses) ** 0.5 if len(losses) > 1 else np.nan
            low, high = (losses.mean() - half, losses.mean() + half)
            interval = (None, None) if np.isnan(half) else (float(low), float(high))
            examples = len(losses) * self._config.batch_size
            loss = {"loss": Metric(scalars["loss"], *interval)}
            self._record("training", step, loss, examples, {})
        if self._first:
            self._writer.write_scalars(step, scalars)
        self._note(step)
        self._window, self._since = [], time.monotonic()

    def _record(
        self,
        kind: str,
        step: int,
        metrics: dict[str, Metric],
        examples: int,
        protocol: dict[str, Any],
        costs: Mapping[str, float] | None = None,
    ) -> None:
        if not self._first:
            return
        if costs is None:
            costs = {
                "parameters": float(self._parameters),
                "training_flops": training_flops(self._task, step * self._config.batch_size),
            }
        append_record(
            self._workdir.local / "training.jsonl",
            Record(
                kind=kind,
                point={**self._task.point, "step": step},
                seed=self._config.seed,
                num_samples=examples,
                metrics=metrics,
                costs=costs,
                protocol=protocol,
                provenance={
                    "jax": jax.__version__,
                    "device": jax.devices()[0].device_kind,
                    "devices": jax.device_count(),
                    "processes": jax.process_count(),
                    "seconds": round(time.monotonic() - self._since, 3),
                },
            ),
        )


def training_flops(task: Task, examples: int) -> float:
    """FLOPs of training on `examples`: the backward pass costs twice the forward pass."""
    return 3.0 * task.forward_flops * examples
