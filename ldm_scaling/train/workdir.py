"""A run's folder: it belongs to one config, and says so."""

import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

RESUMABLE = (
    "num_steps",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "eval_every",
    "export_every",
    "export_steps",
    "max_bad_steps",
    "profile_every",
    "mesh",
    "data.workers",
    "cache_dir",
)
"""Fields (or groups) that may change when a run goes on: none decides what a step does."""


class ForeignWorkdirError(ValueError):
    """The folder holds a run with another config."""


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Writes the resolved config to `workdir/config.json`; refuses a folder of another config.

    A folder without checkpoints holds no run yet: its config is replaced.

    Raises:
      ForeignWorkdirError: names every field that differs and is not `RESUMABLE`.
    """
    path = workdir / "config.json"
    ours = flatten(config.to_dict())
    if path.exists() and (workdir / "checkpoints").exists():
        theirs = flatten(json.loads(path.read_text(encoding="utf-8")))
        missing = object()
        different = [
            f"  {field}: {theirs.get(field, 'absent')!r} there, {ours.get(field, 'absent')!r} here"
            for field in sorted(theirs | ours)
            if theirs.get(field, missing) != ours.get(field, missing) and not _resumable(field)
        ]
        if different:
            raise ForeignWorkdirError(
                f"workdir={workdir} holds a run with another config; give another workdir, or "
                "these fields their old values:\n" + "\n".join(different)
            )
    workdir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n", "utf-8")
    os.replace(partial, path)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": (1, 2)}} -> {"a.b": [1, 2]}: JSON values under dotted names."""
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in flatten(child, f"{prefix}.{key}" if prefix else key).items()
    }


def _resumable(field: str) -> bool:
    return any(field == name or field.startswith(name + ".") for name in RESUMABLE)
