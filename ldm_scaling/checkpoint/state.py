"""Training state on disk: Orbax underneath, and a promise about what is restored.

A checkpoint is used only if every byte of it is what was written (`integrity.py`). A run that was
killed, or whose disk ran full, or whose newest checkpoint was damaged since, goes on from the
newest whole one, and says so.
"""

import os
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from ldm_scaling.checkpoint import integrity
from ldm_scaling.checkpoint.merge import KeyMismatchError, key_diff
from ldm_scaling.hosts import first_says, is_first, wait_for_all

NOWHERE, NOT_WHOLE = -1, -2
"""What the first process says instead of a step."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those there is whole."""


class _Manager(ocp.CheckpointManager):
    """Leaves preemption to the training loop.

    Orbax asks JAX whether a preemption's step is reached, also in the thread that finishes a save,
    with a step long past. JAX would take that for where the run is, and might then choose a step
    to stop at that the run is past.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run, newest first choice, oldest first to go.

    All processes of a run on several hosts call every method together, in the same order. Each
    writes the parts of the state that lie on its devices, so they all need to see `folder`; the
    first one vouches for all files when the others have written theirs, and chooses what is
    restored.

    Args:
      folder: local path or `gs://` URL; it is made by the first save.
      keep: how many of the newest checkpoints stay.
      keep_period: checkpoints at multiples of this step stay for ever; None: none do.
      async_save: `save` returns when the state is copied off the devices, and writing goes on in
        the background; False: it returns when the checkpoint is committed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int = 3,
        keep_period: int | None = None,
        async_save: bool = True,
    ):
        if keep < 1:
            raise ValueError(f"keep={keep}: at least 1 checkpoint has to stay")
        if keep_period is not None and keep_period < 1:
            raise ValueError(f"keep_period={keep_period}: give a number of steps, or None")
        folder = os.fspath(folder)
        self._folder = epath.Path(folder if "://" in folder else os.path.abspath(folder))
        self._keep, self._keep_period, self._async_save = keep, keep_period, async_save
        self._writer: ocp.CheckpointManager | None = None
        self._saving: int | None = None  # step of the save that may still be under way
        self._torn: set[int] = set()  # found by restore_latest, set aside by the next save

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Saves `state` (pytree of arrays, typed keys too) and `meta` (JSON) as `step`.

        The state may be donated or overwritten as soon as this returns.

        Raises:
          ValueError: the folder already has a checkpoint of this step or a later one.
          CheckpointError: this save, or the one before it in the background, failed; checkpoints
            that were there before are untouched, and a later save may be tried.
        """
        began = time.monotonic()
        self.wait()
        try:
            writer = self._open_writer()
            latest = max(writer.all_steps(), default=-1)
            if step <= latest:
                raise ValueError(
                    f"step={step}: {self._folder} already has a checkpoint of step {latest}; "
                    "restore from it or save to an empty folder"
                )
            self._saving = step
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            )
            writer.save(step, args=args, force=True)
        except (OSError, RuntimeError, ValueError) as error:
            if self._saving is None:
                raise
            self._fail(error)
        if not self._async_save:
            self.wait()
        logging.info("Saved step %d: training waited %.2f s", step, time.monotonic() - began)

    def restore_latest(
        self, abstract_state: Any, *, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Restores the newest whole checkpoint, or the one of `step`.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` (or arrays) with the shardings that the
            restored arrays shall have; they need not be those that were saved.
          step: restore this step instead of the newest.

        Returns:
          (step, state, meta), the state bit for bit as it was saved; None where there is no
          checkpoint at all (a fresh start).

        Raises:
          CheckpointError: there are checkpoints but none is whole; or `step` is missing or torn.
          ValueError: the checkpoint is whole but holds other names, shapes or dtypes.
        """
        self.wait()
        damages: list[str] = []
        chosen = first_says(self._choose(step, damages) if is_first() else NOWHERE)
        if chosen == NOWHERE:
            return None
        if chosen == NOT_WHOLE:
            raise CheckpointError(
                "no whole checkpoint; to start anew, remove the folder.\n"
                + ("\n".join(damages) or "The log of the first process says what is wrong.")
            )
        return chosen, *self._restore(chosen, abstract_state)

    def _choose(self, step: int | None, damages: list[str]) -> int:
        """The newest whole step, or `step` where it is whole; says why others were skipped."""
        steps = self.steps() if step is None else [step]
        for candidate in reversed(steps):
            folder = self._folder / str(candidate)
            damage = integrity.find_damage(folder) if folder.exists() else "missing"
            if damage is None:
                return candidate
            damages.append(f"{folder} is not whole: {damage}")
            if step is None:
                self._torn.add(candidate)
                logging.warning("Skipped a checkpoint. %s", damages[-1])
        return NOT_WHOLE if steps else NOWHERE

    def steps(self) -> list[int]:
        """Steps of all committed checkpoints, ascending; torn ones are among them."""
        if not self._folder.exists():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdecimal())

    def wait(self) -> None:
        """Returns when nothing is being saved. Raises CheckpointError if the last save failed."""
        if self._writer is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:  # whatever the background thread met
            self._fail(error)
        self._saving = None

    def close(self) -> None:
        """Waits, then frees Orbax's threads. Raises CheckpointError if the last save failed."""
        self.wait()
        self._close_writer()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_writer(self) -> ocp.CheckpointManager:
        if self._writer is None:
            if is_first():
                self._set_torn_aside()
            wait_for_all("torn checkpoints are set aside")  # before Orbax lists what is there
            policies: list[ocp.checkpoint_managers.PreservationPolicy] = [
                ocp.checkpoint_managers.LatestN(self._keep)
            ]
            if self._keep_period is not None:
                policies.append(ocp.checkpoint_managers.EveryNSteps(self._keep_period))
            self._writer = _Manager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
                    cleanup_tmp_directories=True,  # what a killed run left half written
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
                ),
            )
        return self._writer

    def _seal(self) -> None:
        """Writes the manifest when all data is on disk, before Orbax commits by renaming.

        Orbax calls it when all processes have written their parts.
        """
        if not is_first():
            return
        folders = [*self._folder.glob(f"{self._saving}{ocp.path.atomicity.TMP_DIR_SUFFIX}*")]
        integrity.write_manifest(folders[0] if folders else self._folder / str(self._saving))

    def _set_torn_aside(self) -> None:
        """Renames torn checkpoints, so that they neither block their step nor count as kept."""
        for step in sorted(self._torn):
            source, aside = self._folder / str(step), self._folder / f"{step}.torn"
            if not source.exists():
                continue  # somebody cleaned up
            if aside.exists():
                aside.rmtree()
            source.rename(aside)
            logging.warning("Set the torn checkpoint aside as %s.", aside)
        self._torn.clear()

    def _restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        handlers = ocp.CompositeCheckpointHandler(
            state=ocp.StandardCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
        )
        folder = self._folder / str(step)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state), meta=ocp.args.JsonRestore()
        )
        with ocp.Checkpointer(handlers) as reader:
            try:
                _check_is_like(reader.metadata(folder).item_metadata["state"], abstract_state)
                restored = reader.restore(folder, args=args)
            except ValueError as error:
                raise ValueError(
                    f"{folder} is whole, but is the state of something else: {error}"
                ) from error
        return restored["state"], restored["meta"]

    def _fail(self, error: Exception) -> None:
        step, self._saving = self._saving, None
        self._close_writer()
        if is_first() and self._folder.exists():
            # What is half written would fill the disk further.
            for path in self._folder.glob(f"{step}{ocp.path.atomicity.TMP_DIR_SUFFIX}*"):
                path.rmtree(missing_ok=True)
        raise CheckpointError(
            f"step {step} could not be saved to {self._folder}; "
            f"checkpoints there before are untouched: {self.steps()}. {error}"
        ) from error

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except Exception:  # a failed save was reported already; the rest is clean-up
                logging.exception("Closing the checkpoint writer failed.")


def _check_is_like(stored: Any, wanted: Any) -> None:
    """Compares names, shapes and dtypes of the arrays. Orbax alone would cast dtypes in silence.

    Raises KeyMismatchError, or ValueError for a dtype.
    """
    stored, wanted = _arrays_of(getattr(stored, "tree", stored)), _arrays_of(wanted)
    if diff := key_diff(wanted, stored):
        raise KeyMismatchError(diff)
    for name, leaf in wanted.items():
        if stored[name].dtype != leaf.dtype:
            raise ValueError(f"{name} is stored as {stored[name].dtype}, not {leaf.dtype}")


def _arrays_of(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape and dtype of each array, typed keys as the key data that they are stored as."""
    arrays = {}
    flat = ocp.tree.to_flat_dict(tree, sep=".", is_leaf=lambda leaf: hasattr(leaf, "shape"))
    for name, leaf in flat.items():
        if not hasattr(leaf, "shape"):
            continue
        spec = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        arrays[name] = jax.eval_shape(jax.random.key_data, spec) if is_key else spec
    return arrays
