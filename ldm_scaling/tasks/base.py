"""What the training loop asks of an objective."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from ldm_scaling.types import Batch, Keys, Params


@runtime_checkable
class Task(Protocol):
    """An objective: what is trained, what is frozen, and the loss.

    Attributes:
      frozen: dict of frozen parameter trees; the step gets them as an argument, sharded like the
        trained ones, so that they are never constants of the compiled program.
      point: where its training lies in a study: family, width, task (JSON scalars).
      facts: what else an export's training.json says (JSON scalars).
      forward_flops: 2 x multiply-adds of one example's forward pass through the trained network.
    """

    frozen: Params
    point: Mapping[str, Any]
    facts: Mapping[str, Any]
    forward_flops: float

    def init(self, key: jax.Array) -> Params:
        """The parameters to train, freshly drawn; pure, so that it runs under `jax.eval_shape`."""

    def loss(
        self, params: Params, frozen: Params, batch: Batch, keys: Keys, step: jax.Array
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """The mean loss of the batch (scalar) and a dict of scalar metrics to log.

        Metrics, too, are means over examples: they are averaged over parts of a batch and steps.

        Args:
          params: as `init` made them.
          frozen: this task's `frozen`.
          batch: arrays with a leading axis [B], as `host_batch` made them.
          keys: typed keys [B], one an example and step.
          step: int32 scalar, the number of the training step.
        """

    def host_batch(self, batch: Batch) -> Batch:
        """Turns the pipeline's batch into numpy arrays only (tokenises captions, drops columns).

        Keeps "example_id" [B] int32. Runs on the pipeline's thread.
        """

    def export(self, params: Params, folder: Path) -> None:
        """Writes `params` in the diffusers layout into `folder` (which exists)."""
