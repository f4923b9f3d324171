"""Notices at once that a process of the run is gone, and ends the others with a word about it.

XLA notices as well, but only when its heartbeats have been missing for their whole timeout, and
then it aborts; until then a collective waits for the dead. So every process holds a TCP connection
to the first one for as long as it lives. The operating system closes it when the process dies, in
whatever way, and keepalive probes find out when a machine does. Nothing crosses it but a farewell,
or why a process ends all others.

XLA's coordinator lives in the first process. When that one dies, each of the others loses both
connections at once, and XLA, which then ends it too, may have its say before or after the watch.
"""

import contextlib
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

FAREWELL_SECONDS = 5.0
"""How long the first process lets the others read its last word before it goes itself."""

LISTEN_BACKLOG = 4096


class Hub:
    """The first process' end of all connections, its own included, in a thread of its own.

    Args:
      count: number of processes.
      timeout: seconds after which a machine that answers no probe counts as gone.

    Attributes:
      port: where it listens, on all addresses of this machine.
      token: what a process has to say first, so that nobody else is taken for one.
    """

    def __init__(self, count: int, timeout: int) -> None:
        self._timeout = timeout
        self._listener = _listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._members: dict[int, _Line] = {}
        self._left: set[int] = set()
        self._count = count
        self._ended = False
        self.port: int = self._listener.getsockname()[1]
        self.token = secrets.token_hex(16)
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._serve()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _serve(self) -> None:
        while len(self._left) < self._count and not self._ended:
            for key, _ in self._selector.select():
                if self._ended:
                    break
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._listen_to(key.data)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        _probe(connection, self._timeout)
        self._selector.register(connection, selectors.EVENT_READ, _Line(connection))

    def _listen_to(self, line: "_Line") -> None:
        words = line.read()
        for word in words:
            if word.get("token") == self.token:
                line.index, line.host = int(word["index"]), str(word["host"])
                self._members[line.index] = line
                line.say(word="welcome")
            elif line.index is None:
                self._forget(line)  # a stranger
                return
            elif word["word"] == "farewell":
                self._farewell(line)
            elif word["word"] == "end":
                self._end_all(word["why"])
        if line.closed:
            gone = line.index is not None and line.index not in self._left
            self._forget(line)
            if gone:
                self._end_all(_gone(line.index, line.host))

    def _farewell(self, line: "_Line") -> None:
        assert line.index is not None
        self._left.add(line.index)
        if line.index == 0:  # this machine's: the others shall not take it for a death
            for index, other in self._members.items():
                if index not in self._left:
                    other.say(word="farewell")
        line.say(word="farewell")

    def _end_all(self, why: str) -> None:
        """Tells everybody, this process last: with it goes the hub, and XLA's coordinator."""
        self._ended = True
        present = {i: m for i, m in self._members.items() if i not in self._left and not m.closed}
        own = present.pop(0, None)
        for line in present.values():
            line.say(word="end", why=why)
        deadline = time.monotonic() + FAREWELL_SECONDS
        for line in present.values():
            line.wait_until_closed(deadline)
        if own:
            own.say(word="end", why=why)

    def _forget(self, line: "_Line") -> None:
        line.closed = True
        self._selector.unregister(line.socket)
        line.socket.close()


class Watch:
    """One process' end of its connection to the hub.

    Args:
      index, count: of this process, and how many there are.
      address: (host, port) of the hub.
      token: the hub's.
      timeout: as for `Hub`.
      end: called in the watch's thread with what happened; the default says so and exits with 1.

    Raises:
      OSError: there is no hub at that address, or not one of this run.
    """

    def __init__(
        self,
        index: int,
        count: int,
        address: tuple[str, int],
        token: str,
        timeout: int,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self.index, self.count = index, count
        self._end = end or self._say_and_exit
        connection = socket.create_connection(address, timeout=timeout)
        _probe(connection, timeout)
        self._line = _Line(connection)
        self._hub_host = address[0]
        self._line.say(token=token, index=index, host=socket.gethostname())
        self._heard: list[dict[str, Any]] = []
        while not self._heard:  # "welcome", and perhaps more
            if self._line.closed:
                connection.close()
                raise ConnectionError("nobody there who knows of this run")
            self._heard = self._line.read()
        connection.settimeout(None)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Says farewell: from now on this process may vanish. Returns when the hub has heard."""
        self._line.say(word="farewell")
        self._over.wait(FAREWELL_SECONDS)

    def end_all(self, why: str) -> None:
        """Ends every process, this one too, each with `why`. Returns only if nobody listens."""
        self._line.say(word="end", why=why)
        self._thread.join(2 * FAREWELL_SECONDS)

    def wait(self, seconds: float) -> None:
        """Returns after `seconds` if by then nobody was found to be gone."""
        self._thread.join(seconds)

    def _run(self) -> None:
        why = self._listen()
        try:
            if why:
                self._end(why)
        finally:
            self._line.socket.close()  # not before the end: the first process waits for it

    def _listen(self) -> str:
        while not self._line.closed:
            for word in self._heard:
                if word["word"] == "end":
                    return str(word["why"])
                if word["word"] == "farewell":
                    self._over.set()
            self._heard = self._line.read()
        return "" if self._over.is_set() else _gone(0, self._hub_host)

    def _say_and_exit(self, what: str) -> None:
        # Past Python's buffers and its exit: the main thread may hold the former, and keeps the
        # latter from ending, as it waits for a process that is no more.
        with contextlib.suppress(Exception):
            os.write(2, f"process {self.index} of {self.count} ends: {what}\n".encode())
        os._exit(1)


class _Line:
    """JSON lines over a socket. What cannot be sent is dropped: `read` will find out why."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.index: int | None = None
        self.host = ""
        self.closed = False
        self._rest = b""
        self._lock = threading.Lock()

    def say(self, **word: Any) -> None:
        with self._lock, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(word).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """What has arrived, waiting for something to; sets `closed` where nothing can any more."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return list(_parsed(lines))

    def wait_until_closed(self, deadline: float) -> None:
        with contextlib.suppress(OSError):
            while (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv(1 << 16):
                    return


def _gone(index: int | None, host: str) -> str:
    return (
        f"process {index} ({host}) is gone: its connection broke. Give every process the same "
        "command again to go on from what is saved."
    )


def _parsed(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            word = json.loads(line)
            if isinstance(word, dict):
                yield word


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=LISTEN_BACKLOG
        )
    return socket.create_server(("", 0), backlog=LISTEN_BACKLOG)


def _probe(connection: socket.socket, timeout: int) -> None:
    """Has the operating system find out within `timeout` seconds that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    quarter = max(1, timeout // 4)
    for name, value in (("TCP_KEEPIDLE", quarter), ("TCP_KEEPINTVL", quarter), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # Linux; elsewhere the system's own, slower settings stay
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
