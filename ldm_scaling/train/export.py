"""Exports of a run: the moving average in the diffusers layout, whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_scaling.hosts import is_first
from ldm_scaling.sharding import fetch
from ldm_scaling.tasks.base import Task
from ldm_scaling.train.report import training_flops
from ldm_scaling.train.state import TrainState


def export(config: ConfigDict, task: Task, mesh: Mesh, state: TrainState, folder: Path) -> None:
    """Writes what `state` has learned to `folder`; all processes call it, the first one writes."""
    params = fetch(mesh, state.ema_params)
    if not is_first():
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
    task.export(params, partial)
    (partial / "training.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    logging.info("Exported the moving average of step %d to %s", step, folder)
