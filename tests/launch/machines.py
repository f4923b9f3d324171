"""The machines of fake_gcloud.py: a worker is a folder, and what runs with it as its home."""

import os
import signal
import subprocess
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])


def processes_of(name: str) -> list[int]:
    """Everything that runs on the workers of a slice, however it was started."""
    mark = f"FAKE_WORKER={CLOUD / 'workers' / name}-".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def power_off(name: str, warning: float = 0.0) -> None:
    """Ends what runs on a slice: SIGTERM, as a machine does that shuts down, and then SIGKILL."""
    for number, patience in ((signal.SIGTERM, warning), (signal.SIGKILL, 1.0)):
        for pid in processes_of(name) if patience else ():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while processes_of(name) and time.monotonic() < deadline:
            time.sleep(0.02)


def run_there(home: Path, command: str) -> subprocess.Popen:
    """One ssh session; what it leaves behind in its own group gets SIGHUP when the session ends."""
    environment = {
        "HOME": str(home),
        "PATH": f"{home}/bin:/usr/bin:/bin",
        "FAKE_WORKER": str(home),
        "FAKE_CLOUD": str(CLOUD),
        "LDM_SCALING_STOP_SECONDS": "3",
    }
    return subprocess.Popen(
        ["bash", "-c", command],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
