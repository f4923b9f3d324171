"""The folder of a run or a study: it belongs to one config, and says so."""

import json
import os
from collections.abc import Collection
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
    """The folder holds results of another config."""


STUDY_RESUMABLE = ("models", "seeds", "grids", "batch_size", "mesh", "beside", "about")
"""Of a study: more points may be added to a folder, but all share one protocol."""


def claim_workdir(
    workdir: Path,
    config: ConfigDict,
    *,
    results: str = "checkpoints",
    resumable: Collection[str] = RESUMABLE,
) -> None:
    """Writes the resolved config to `workdir/config.json`; refuses a folder of another config.

    Args:
      workdir: made if needed.
      config: of the run or study.
      results: a glob. A folder without any holds nothing yet: its config is replaced.
      resumable: fields (or groups) that may differ.

    Raises:
      ForeignWorkdirError: names every field that differs and is not resumable.
    """
    path = workdir / "config.json"
    ours = flatten(config.to_dict())
    if path.exists() and any(workdir.glob(results)):
        theirs = flatten(json.loads(path.read_text(encoding="utf-8")))
        missing = object()
        different = [
            f"  {field}: {theirs.get(field, 'absent')!r} there, {ours.get(field, 'absent')!r} here"
            for field in sorted(theirs | ours)
            if theirs.get(field, missing) != ours.get(field, missing)
            and not any(field == name or field.startswith(name + ".") for name in resumable)
        ]
        if different:
            raise ForeignWorkdirError(
                f"workdir={workdir} holds results of another config; give another workdir, or "
                "these fields their old values:\n" + "\n".join(different)
            )
    workdir.mkdir(parents=True, exist_ok=True)
    # One partial file a process: jobs of an array claim a study's folder side by side.
    partial = path.with_suffix(f".{os.getpid()}.partial")
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
