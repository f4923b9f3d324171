"""Ctrl-C and SIGTERM as a request to end after the running step."""

import signal
import threading
from types import FrameType, TracebackType

from absl import logging


class Interrupt:
    """While entered, the first SIGINT or SIGTERM only sets `signal_name`.

    A second one acts as if nobody listened (Ctrl-C raises KeyboardInterrupt). Outside the main
    thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        logging.warning("%s: finishing this step, then saving (again to abort)", self.signal_name)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
