"""A small cloud for tests of launch/tpu_pod.sh: see fake_gcloud.py, which is its gcloud.

The script under test, the one for the workers and all that they source are the real ones. Only what
they start is made up: the installation, which is a script that a test can make fail on one worker,
and training, which counts steps.
"""

import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.launch.stand_ins import ENVIRONMENT, PROGRESS, ROOT, TRAIN

SCRIPTS = ("tpu_pod.sh", "tpu_slice.sh", "tpu_training.sh", "tpu_worker.sh", "environment.sh")


class Cloud:
    """A cloud, and a git checkout from which the launcher is run."""

    name = "pod"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cloud"
        for part in ("requests", "nodes", "workers", "buckets", "wishes", "bin"):
            (self.folder / part).mkdir(parents=True)
        (self.folder / "calls.jsonl").touch()
        (self.folder / "scenario.json").write_text("{}")
        gcloud = self.folder / "bin" / "gcloud"
        fake = Path(__file__).with_name("fake_gcloud.py")
        gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {fake} "$@"\n')
        gcloud.chmod(0o755)
        self.workdir = folder / "workdir"
        self.pods = folder / "pods"
        self.checkout = folder / "checkout"
        self._make_checkout()
        self._started: list[subprocess.Popen] = []

    def _make_checkout(self) -> None:
        launch = self.checkout / "launch"
        launch.mkdir(parents=True)
        for script in SCRIPTS:
            shutil.copy(ROOT / "launch" / script, launch)
        with (launch / "environment.sh").open("a") as environment:
            environment.write(ENVIRONMENT)
        (launch / "train.py").write_text(TRAIN)
        (launch / "progress.py").write_text(PROGRESS)
        self.git("init", "--quiet")
        self.commit()

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=tester", "-c", "user.email=tester@localhost")
        command = ["git", *identity, *arguments]
        done = subprocess.run(
            command, cwd=self.checkout, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message=code")
        return self.git("rev-parse", "HEAD")

    def _tell(self, call: str) -> None:
        """Calls a function of the cloud itself, as its gcloud would."""
        code = f"from fake_gcloud import *\nwith one_at_a_time(): {call}"
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env={"FAKE_CLOUD": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            check=True,
        )

    def expect(self, **scenario: int | str) -> None:
        """What is to go wrong: create_failures, create_message, request_failures, polls_in_queue,
        no_network and no_ssh (how many commands fail for it); how many workers a slice has."""
        self._tell(f"expect(**{scenario!r})")

    def scenario(self, name: str) -> int:
        return json.loads((self.folder / "scenario.json").read_text())[name]

    def wish(self, name: str, worker: int, step: int = 0) -> None:
        """What is to happen on a worker: broken-install; or, in a step: crash (each time it is
        reached), crash-once, lose-slice, wait (until there is no such wish)."""
        self._wish(name, worker).write_text(str(step))

    def unwish(self, name: str, worker: int) -> None:
        self._wish(name, worker).unlink()

    def _wish(self, name: str, worker: int) -> Path:
        return self.folder / "wishes" / f"{name}-{self.name}-{worker}"

    def arguments(self, *options: str, steps: int = 8, workdir: str = "", extra: str = "") -> list:
        training = [f"--workdir={workdir or self.workdir}", f"--config.num_steps={steps}"]
        if extra:
            training.append(f"--config.name={extra}")
        where = [f"--name={self.name}", "--type=v5p-16", "--zone=us-east5-a", "--project=lab"]
        return [*where, *options, "--", *training]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """The launcher in the background, in a process group as a terminal would give it."""
        process = subprocess.Popen(
            ["bash", self.checkout / "launch" / "tpu_pod.sh", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={
                "PATH": f"{self.folder}/bin:/usr/bin:/bin",
                "HOME": str(self.folder),
                "FAKE_CLOUD": str(self.folder),
                "LDM_SCALING_PODS": str(self.pods),
                "LDM_SCALING_POLL_SECONDS": "0.05",
                **environment,
            },
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit code and output of the launcher."""
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def calls(self, *words: str) -> list[list[str]]:
        """The calls of gcloud that have all these words among their arguments."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if set(words) <= set(call)]

    def calls_of(self, verb: str) -> list[list[str]]:
        """The calls that had tpu_worker.sh do this."""
        return [call for call in self.calls() if f"tpu_worker.sh {verb}" in " ".join(call)]

    def request(self) -> dict | None:
        path = self.folder / "requests" / f"{self.name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def put_request(self, state: str, owner: str = "", accelerator: str = "v5p-16") -> None:
        """A queued resource that somebody else made."""
        labels = {"ldm-scaling-launcher": owner} if owner else {"team": "vision"}
        node = {"acceleratorType": accelerator, "labels": labels}
        request = {"state": {"state": state}, "tpu": {"nodeSpec": [{"node": node}]}}
        self._tell(f"store('requests', {self.name!r}, {request!r})")
        if state == "ACTIVE":
            self.put_node(accelerator)

    def put_node(self, accelerator: str = "v5p-16") -> None:
        """A TPU VM that somebody else made, without a queued resource."""
        self._tell(f"make_node({self.name!r}, {{'acceleratorType': {accelerator!r}}})")

    def steps(self) -> list[int]:
        """The steps that were saved, in the order in which they were."""
        lines = (self.workdir / "training.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]

    def log(self) -> str:
        """What the launcher kept of worker 0's logs, oldest start first."""
        return "".join(path.read_text() for path in sorted(self.pods.glob("*/log-*.txt")))

    def wait_for(self, condition, what: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
            time.sleep(0.02)

    def _pids(self, mark: str) -> list[int]:
        """Processes whose environment holds `mark`, wherever they were started."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark.encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
        return found

    def _running(self, mark: str) -> list[str]:
        lines = []
        for pid in self._pids(mark):
            with contextlib.suppress(OSError):
                lines.append(
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                )
        return [line for line in lines if line]

    def on_workers(self) -> list[str]:
        """Command lines of what runs on workers."""
        return self._running(f"FAKE_WORKER={self.folder}")

    def at_home(self) -> list[str]:
        """Command lines of what runs of the launcher itself."""
        return self._running(f"LDM_SCALING_PODS={self.pods}")

    def first_line(self, process: subprocess.Popen) -> str:
        """Of a launcher in the background; empty if it is silent for long."""
        readable, _, _ = select.select([process.stdout], [], [], 20.0)
        return process.stdout.readline() if readable else ""

    def pids_at_home(self, word: str) -> list[int]:
        """Processes of the launcher whose command line has this word."""
        pids = self._pids(f"LDM_SCALING_PODS={self.pods}")
        return [pid for pid in pids if word in Path(f"/proc/{pid}/cmdline").read_text()]

    def power_cut(self) -> None:
        """All that runs on workers ends at once, and the slice is up again before anybody looks."""
        for pid in self._pids(f"FAKE_WORKER={self.folder}"):
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for pid in self._pids(f"FAKE_CLOUD={self.folder}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait()
            process.stdout.close()


def commands_in(dry_run: str) -> list[list[str]]:
    """The commands that a dry run printed, as a shell would read them."""
    return [shlex.split(line) for line in dry_run.splitlines() if not line.startswith("#")]
