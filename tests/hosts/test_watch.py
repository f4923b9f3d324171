"""Who learns what when a process leaves, fails or dies. Threads stand for the processes here; real
ones are killed in tests/train/test_multihost.py.
"""

import contextlib
import queue
import socket
import threading

import pytest

from ldm_scaling.hosts.watch import Hub, Watch

SECONDS = 10.0


class Group:
    """A hub and `count` watches that write down what they were told to end with."""

    def __init__(self, count):
        self.hub = Hub(count, timeout=4)
        self.ends = queue.Queue()
        self.watches = [self.join(index, count) for index in range(count)]

    def join(self, index, count):
        def end(what):
            self.ends.put((index, what))

        address = ("localhost", self.hub.port)
        return Watch(index, count, address, self.hub.token, timeout=4, end=end)

    def told(self, count):
        """index -> last words, of the `count` first to be told; then nobody else is."""
        told = [self.ends.get(timeout=SECONDS) for _ in range(count)]
        self.hub._thread.join(SECONDS)
        for watch in self.watches:
            watch.wait(SECONDS)
        assert self.ends.empty()
        return dict(told)

    def die(self, index):
        # shutdown: the operating system does it for a dead process' socket.
        with contextlib.suppress(OSError):  # the last to leave may have closed it already
            self.watches[index]._line.socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_leaving_in_any_order_ends_nobody(order):
    group = Group(3)
    for index in order:
        group.watches[index].leave()
        group.die(index)
    assert group.told(0) == {}
    assert not any(watch._thread.is_alive() for watch in group.watches)


def test_a_death_is_told_to_all_others_by_name():
    group = Group(4)
    group.die(2)
    told = group.told(4)  # the dead one's own thread finds its line broken, too
    host = socket.gethostname()
    for index in (0, 1, 3):
        assert told[index].startswith(f"process 2 ({host}) is gone: its connection broke.")
        assert "the same command again" in told[index]


def test_the_death_of_the_first_is_noticed():
    ends = queue.Queue()
    with socket.create_server(("localhost", 0)) as server:

        def first():
            connection, _ = server.accept()
            with connection:
                assert b"token" in connection.recv(1000)
                connection.sendall(b'{"word": "welcome"}\n')

        thread = threading.Thread(target=first)
        thread.start()
        Watch(1, 2, server.getsockname(), "token", timeout=4, end=ends.put)
        thread.join()
    assert ends.get(timeout=SECONDS).startswith("process 0 (127.0.0.1) is gone")


@pytest.mark.parametrize("index", [0, 2])
def test_a_failure_ends_all_with_its_reason(index):
    group = Group(3)
    group.watches[index].end_all("process 2 failed: DataError: no such file")
    assert group.told(3) == dict.fromkeys(range(3), "process 2 failed: DataError: no such file")


def test_the_first_hears_last():
    """With it goes XLA's coordinator, at whose end the others would abort."""
    group = Group(4)
    group.watches[1].end_all("enough")
    assert list(group.told(4))[-1] == 0


def test_one_that_left_is_not_missed():
    group = Group(3)
    group.watches[1].leave()
    group.die(1)
    group.watches[2].end_all("enough")
    assert group.told(2) == {0: "enough", 2: "enough"}


def test_strangers_are_not_heard():
    group = Group(2)
    for words in (b'{"word": "end", "why": "mischief"}\n', b"GET / HTTP/1.0\r\n\r\n\n[1]\n"):
        with socket.create_connection(("localhost", group.hub.port), timeout=SECONDS) as stranger:
            stranger.sendall(words)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(100) == b""  # hung up on
    with pytest.raises(ConnectionError, match="nobody there who knows of this run"):
        Watch(1, 2, ("localhost", group.hub.port), "guessed", timeout=4)
    for watch in group.watches:
        watch.leave()
    assert group.told(0) == {}


def test_silence_is_probed_within_the_timeout():
    group = Group(2)
    for line in (group.watches[1]._line, group.hub._members[1]):
        assert line.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count = (
            line.socket.getsockopt(socket.IPPROTO_TCP, name)
            for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count <= 4
