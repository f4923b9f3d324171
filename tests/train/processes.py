"""Starts the processes of a run on this machine and waits for what they say and how they end."""

import json
import os
import queue
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
PATIENCE = 600.0
"""Seconds after which something hangs, on however busy a machine."""


class Processes:
    """`count` processes of one run of the toy task, each with `devices` CPU devices.

    Args:
      logs: folder for what each process writes to stderr.
      options: of tests/train/worker.py; `special`: index -> options of that process alone.
      flags: more of them; `own_flags`: those of each process.
      command: instead of the worker: what to run, the flags of the processes left out.
      xla_flags: beside the number of devices.
    """

    def __init__(
        self,
        logs,
        count,
        devices,
        options,
        special=None,
        flags=(),
        command=None,
        own_flags=None,
        xla_flags="",
    ):
        logs.mkdir(parents=True, exist_ok=True)
        self.logs, self.count = logs, count
        coordinator = f"127.0.0.1:{free_port()}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {xla_flags}",
            "PYTHONPATH": str(ROOT),
        }
        self._all, self._said = [], []
        for index in range(count):
            own = {**options, **(special or {}).get(index, {})}
            base = command or [WORKER, f"--options={json.dumps(own)}"]
            together = [
                f"--coordinator={coordinator}",
                f"--num_processes={count}",
                f"--process_id={index}",
                *(own_flags[index] if own_flags else ()),
            ]
            with open(logs / f"{index}.log", "w") as log:
                process = subprocess.Popen(
                    [sys.executable, *base, *(together if count > 1 else ()), *flags],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            lines = queue.SimpleQueue()
            reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
            reader.start()
            self._all.append((process, reader))
            self._said.append(lines)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process, reader in self._all:
            process.kill()
            process.wait()
            reader.join()

    def wait_for(self, index, line):
        """Returns when a process says `line` on stdout."""
        while True:
            said = self._said[index].get(timeout=PATIENCE)
            assert said is not None, f"ended before {line!r}:\n{self.log(index)}"
            if said == line:
                return

    def signal(self, index, number):
        self._all[index][0].send_signal(number)

    def end_of(self, index):
        """The exit code of one, when it has ended."""
        return self._all[index][0].wait(timeout=PATIENCE)

    def codes(self):
        """The exit codes, when all have ended."""
        return [self.end_of(index) for index in range(self.count)]

    def log(self, index):
        return (self.logs / f"{index}.log").read_text()

    def finish(self):
        """Waits for all, and shows what they said where one failed."""
        codes = self.codes()
        assert codes == [0] * self.count, "\n".join(self.log(i) for i in range(self.count))


def _read(stream, lines):
    with stream:
        for line in stream:
            lines.put(line.rstrip("\n"))
    lines.put(None)


def free_port():
    """Below the ports that the system gives to outgoing connections, so that none is in the way."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
