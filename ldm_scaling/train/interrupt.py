"""Ctrl-C and SIGTERM as a request to end after the running step, the same step on all hosts."""

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from absl import logging
from jax.experimental import multihost_utils

from ldm_scaling.hosts import sigterm_heard

EXIT_CODES = {"SIGINT": 128 + signal.SIGINT, "SIGTERM": 0}
"""Ctrl-C ends a script that holds the command, too; a preempted job has done what it could."""


class Interrupt:
    """While entered, the first SIGINT or SIGTERM only makes `requested` true.

    A second one acts as if nobody listened (Ctrl-C raises KeyboardInterrupt). Outside the main
    thread, where Python allows no handlers, it does nothing.

    With several processes, SIGTERM on one host is enough: JAX hears it, passes it on, and finds the
    step after which all can stop.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._several = jax.process_count() > 1
        self._previous: dict[int, object] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Interrupt":
        numbers = [signal.SIGINT, signal.SIGTERM]
        if self._several:
            self._stack.enter_context(sigterm_heard())
            numbers = [signal.SIGINT]
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
        self._stack.close()

    def requested(self, step: int) -> bool:
        """Whether to stop after `step` steps; to be asked after every step, by all processes."""
        if not self._several:
            return bool(self.signal_name)
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        self.signal_name = self.signal_name or "SIGTERM"
        return True

    @property
    def exit_code(self) -> int:
        """Of a process that stops as `requested`."""
        return EXIT_CODES[self.signal_name]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        logging.warning("%s: finishing this step, then saving (again to abort)", self.signal_name)
        self._restore()
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # for JAX, to tell the others

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
