"""The folder of a run or a study: it belongs to one config, and says so. It may be in a bucket."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath
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
    *("mesh", "tpu_options"),
    "data.workers",
    "cache_dir",
    "compilation_cache",
)
"""Fields (or groups) that may change when a run goes on: none decides what a step does."""


class ForeignWorkdirError(ValueError):
    """The folder holds results of another config."""


STUDY_RESUMABLE = (
    *("models", "widths", "seeds", "grids", "batch_size", "mesh", "beside", "about"),
    "protocol.keep_images",
)
"""Of a study: more points may be added to a folder, but all share one protocol."""


FETCHED = ("training.jsonl", "progress.json")
"""Files of a bucket that a run goes on writing."""

NOT_PUBLISHED = ("cache", "compiled")
"""Folders that stay on the machine that made them."""


class Workdir:
    """A run's folder, for everything but its checkpoints, which Orbax writes itself.

    A bucket can neither append to a file nor show the file system that libraries write to. So what
    a run writes goes to `local`, and `publish` copies what has changed, each file whole. Between
    two calls a bucket is behind; a machine that dies takes the last records with it, as it takes
    the steps since the last checkpoint.

    Attributes:
      folder: what was given; a local path is made absolute.
      local: the same folder, or, for a bucket (`gs://...`), a folder of this machine.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        folder = os.fspath(folder)
        self._in_bucket = "://" in folder
        self.folder = epath.Path(folder if self._in_bucket else os.path.abspath(folder))
        self.local = _spool(folder) if self._in_bucket else Path(self.folder)
        self._published: dict[Path, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Brings the files of `FETCHED` from the bucket to this machine, and removes others."""
        if not self._in_bucket:
            return
        for path in self.local.iterdir() if self.local.exists() else ():
            if path.name not in NOT_PUBLISHED:  # of a run that ended before it could publish
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.local.mkdir(parents=True, exist_ok=True)
        for name in FETCHED:
            if (self.folder / name).exists():
                (self.local / name).write_bytes((self.folder / name).read_bytes())
        logging.info("What goes to %s is kept in %s until then", self.folder, self.local)

    def publish(self) -> None:
        """Copies to the bucket what is new or has changed since the last call."""
        if self._in_bucket:
            for path in self._files(self.local):
                self.publish_file(path)

    def publish_file(self, path: Path) -> None:
        """The same for one file of `local`."""
        if not self._in_bucket:
            return
        facts = path.stat()
        version = (facts.st_size, facts.st_mtime_ns)
        if self._published.get(path) == version:
            return
        target = self.folder / path.relative_to(self.local).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 24)
        self._published[path] = version

    def _files(self, folder: Path) -> Iterator[Path]:
        """All files, folders first; not those that are being written (dot files)."""
        children = sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name))
        for path in children:
            if path.name.startswith(".") or path.name in NOT_PUBLISHED:
                continue
            yield from self._files(path) if path.is_dir() else (path,)


def _spool(folder: str) -> Path:
    """The same for the same bucket folder and user, so that a cache in it is found again."""
    name = hashlib.sha256(folder.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ldm_scaling-{os.getuid()}" / name


def claim_workdir(
    workdir: Path | epath.Path,
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
    path = epath.Path(workdir) / "config.json"
    workdir = path.parent
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
    partial.replace(path)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": (1, 2)}} -> {"a.b": [1, 2]}: JSON values under dotted names."""
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in flatten(child, f"{prefix}.{key}" if prefix else key).items()
    }
