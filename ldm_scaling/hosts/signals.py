"""Two signals that XLA's runtime takes for itself when processes join.

Both handlers are C functions, of which Python's `signal` module knows nothing: it could replace
them, but not put them back. So this asks the C library.
"""

import contextlib
import ctypes
import signal
from collections.abc import Iterator

_DEFAULT = 0
_xla_sigterm = _DEFAULT


def tame_signals() -> None:
    """To be called once, when `jax.distributed` is up.

    SIGTERM: XLA's handler only notes it, for a loop that asks. Until one does (`sigterm_heard`),
    a process ends by it as any other.

    SIGABRT: XLA aborts as soon as its connection to the first process breaks. The watch finds the
    same at the same moment, but says who is gone, and ends with a plain exit code; so the thread
    that aborts sleeps for some seconds before. No Python runs in that handler: it is the C
    library's `sleep`, called with the number of the signal, 6.
    """
    global _xla_sigterm
    _xla_sigterm = _set_handler(signal.SIGTERM, _DEFAULT)
    sleep = ctypes.cast(ctypes.CDLL(None).sleep, ctypes.c_void_p).value
    _set_handler(signal.SIGABRT, sleep or _DEFAULT)


@contextlib.contextmanager
def sigterm_heard() -> Iterator[None]:
    """While entered, XLA notes SIGTERM, for `multihost_utils.reached_preemption_sync_point`."""
    before = _set_handler(signal.SIGTERM, _xla_sigterm)
    try:
        yield
    finally:
        _set_handler(signal.SIGTERM, before)


def _set_handler(number: int, handler: int) -> int:
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    return library.signal(number, handler) or _DEFAULT
