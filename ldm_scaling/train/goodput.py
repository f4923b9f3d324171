"""Where the wall time of a run goes: into steps, or into what keeps them waiting.

The loop says in which phase it is; a phase ends where the next begins, so that the shares add up
to one. They are shares of the time of the first process' main thread:

- `step`: the steps themselves, as long as the host is ahead of the device. With several processes,
  what another one waits for (its input, say) looks like a slow step here.
- `input`: waiting for the next batch. The device may still be busy with the steps that the host is
  ahead (`report.RUN_AHEAD`), so a small share need not cost anything.
- `compile`: the first call of each compiled function, which traces and compiles it, or reads it
  from the persistent cache.
- `checkpoint`: what a save holds up, not what it writes in the background.
- `evaluation`, `export`: whole.
- `start`: from the start of `train` to the first batch: reading, caching, restoring.
- `lost`: what earlier runs in the folder did after the step at which the next one began.

What was lost is known from `progress.json`, which the run before wrote at each log line and each
save: the time and steps from the save that was restored to the last line. What it did between
its last line and its death it could not write down, so `lost` is up to `log_every` steps too
small. The time in which nothing ran is no part of the shares; it is told beside them, `down`.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from ldm_scaling.hosts import wait_for_all

PHASES = ("step", "input", "compile", "checkpoint", "evaluation", "export", "start", "lost")

REMEMBERED_SAVES = 20
"""More than a run keeps checkpoints: one of them is where the next run begins."""


class Goodput:
    """A stopwatch that is always in one phase, first in `start`.

    Args:
      clock: seconds that only grow.
      time_of_day: seconds since 1970, comparable between runs.

    Attributes:
      restarts: how often a run in the folder went on where another had stopped.
      lost_steps: steps that had to be done again.
      down: seconds between the last sign of a run and the start of the next.
      blocked: seconds that the last save held up training.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._time_of_day = clock, time_of_day
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "start", clock()
        self._began = time_of_day()
        self._saves: dict[int, dict[str, float]] = {}
        self.restarts, self.lost_steps, self.down, self.blocked = 0, 0, 0.0, 0.0

    @contextlib.contextmanager
    def spent(self, phase: str) -> Iterator[None]:
        """The time in the body, but for what inner bodies spend otherwise, is of this phase."""
        outside = self._switch(phase)
        try:
            yield
        finally:
            self._switch(outside)

    def compiling(self, function: Any) -> Callable[..., Any]:
        """The jitted function, its first call counted as `compile`.

        Of several processes each compiles it and waits for the others before it is called: they
        may need minutes more, and a collective of CPUs waits for 30 seconds only.
        """
        ready: Any = None

        def counted(*args: Any) -> Any:
            nonlocal ready
            if ready is not None:
                return ready(*args)
            with self.spent("compile"):
                ready = function
                if jax.process_count() > 1:
                    ready = function.lower(*args).compile()
                    wait_for_all("compiled")
                return ready(*args)

        return counted

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """A save of `step`: the body is what training waits for."""
        before = self.seconds()["checkpoint"]
        with self.spent("checkpoint"):
            yield
        now = self.seconds()
        self.blocked = now["checkpoint"] - before
        self._saves[step] = now
        while len(self._saves) > REMEMBERED_SAVES:
            del self._saves[min(self._saves)]

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds up to now, those of earlier runs in the folder included."""
        self._switch(self._phase)
        return dict(self._seconds)

    def shares(self) -> dict[str, float]:
        """Phase -> share of all seconds; they add up to one."""
        return shares_of(self.seconds())

    def write(self, file: Path, step: int) -> None:
        """Notes down how far the run is, for the one that may have to go on."""
        seconds = self.seconds()
        if step in self._saves:  # no step since: nothing that could be lost
            self._saves[step] = seconds
        past = {
            "step": step,
            "time": self._time_of_day(),
            "seconds": seconds,
            "saves": self._saves,
            "restarts": self.restarts,
            "lost_steps": self.lost_steps,
            "down": self.down,
        }
        partial = file.with_name(f".{file.name}.partial")
        partial.write_text(json.dumps(past))
        os.replace(partial, file)

    def resume(self, file: Path, step: int) -> None:
        """Takes over what the run before noted down, where this one goes on after `step`."""
        past = _read(file)
        if past is None:
            return
        seconds, saves = past["seconds"], past["saves"]
        # A save that the note does not know of: nothing can be said about what came after.
        kept = saves.get(str(step), seconds if step else {})
        lost = sum(seconds.values()) - sum(kept.values())
        for phase in PHASES:
            self._seconds[phase] += kept.get(phase, 0.0)
        self._seconds["lost"] += lost
        self._saves = {int(at): value for at, value in saves.items() if int(at) <= step}
        self.restarts = past["restarts"] + 1
        lost_steps = max(0, past["step"] - step)
        self.lost_steps = past["lost_steps"] + lost_steps
        self.down = past["down"] + max(0.0, self._began - past["time"])
        if lost_steps:
            logging.info(
                "The run before was seen at step %d: %d steps and %.1f s have to be done again",
                past["step"], lost_steps, lost,
            )  # fmt: skip

    def _switch(self, phase: str) -> str:
        now = self._clock()
        self._seconds[self._phase] += now - self._since
        before, self._phase, self._since = self._phase, phase, now
        return before


def shares_of(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each phase's share of the sum."""
    total = sum(seconds.values()) or 1.0
    return {phase: value / total for phase, value in seconds.items()}


def _read(file: Path) -> Mapping[str, Any] | None:
    try:
        past = json.loads(file.read_text())
        sum(past["seconds"].values())
        return past
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        logging.warning("%s is not readable: what the run before lost is unknown", file)
        return None
