"""Arguments of launch/tpu_pod.sh, what a dry run prints, and coming back to a run."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.cloud import commands_in

START = re.compile(r"\b\d{8}-\d{6} (\d+)|\b\d{8}-\d{6}\b")


def essence(commands: list[list[str]], identity: str) -> list[list[str]]:
    """Commands in order of their first use, without what differs from run to run."""
    plain = [
        [
            re.sub(
                r"START \d+", "START 1", START.sub(r"START \1", word.replace(identity, "IDENTITY"))
            ).replace("START  ", "START ")
            for word in command
        ]
        for command in commands
    ]
    return [command for i, command in enumerate(plain) if command not in plain[:i]]


def test_a_dry_run_prints_what_a_run_does_and_does_nothing(cloud):
    arguments = cloud.arguments("--spot", extra="it's a (name)")
    status, printed = cloud.run("--dry-run", *arguments)
    assert status == 0
    assert cloud.calls() == []
    assert not cloud.pods.exists()
    assert "whenever the slice is preempted" in printed
    planned = commands_in(printed)
    assert {command[0] for command in planned} == {"gcloud", "git"}

    status, output = cloud.run(*arguments)
    assert status == 0, output
    identity = re.search(r"identity (\w+)", output).group(1)
    done = essence(cloud.calls(), identity)
    planned = essence([command[1:] for command in planned if command[0] == "gcloud"], identity)
    # The log is followed beside the other commands, so that its place in their order may differ.
    assert sorted(planned) == sorted(done)
    follow = [command for command in planned if "follow" in command[-4]]
    assert [c for c in planned if c not in follow] == [c for c in done if c not in follow]


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="needs the real gcloud")
@pytest.mark.slow
def test_the_real_gcloud_knows_every_command(cloud, tmp_path):
    _, first = cloud.run("--dry-run", *cloud.arguments("--spot", workdir="gs://bucket/run"))
    _, second = cloud.run("--dry-run", *cloud.arguments("--reserved"))
    commands = [c for c in commands_in(first + second) if c[0] == "gcloud"]
    for command in essence(commands, "IDENTITY"):
        # With a flag that it does not know, gcloud ends before it does anything; it names all such.
        command.insert(-1, "--no-such-flag")
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "config")},
            check=False,
        )
        assert done.returncode == 2, command
        assert re.search(
            r"unrecognized arguments: --no-such-flag( \(did .*)? *$", done.stderr, re.M
        )


BAD = {
    "--name=": ("--name=Pod_1", "--name='Pod_1': lower case letters, digits and hyphens"),
    "--type=": ("--type=v5e-256", "--type=v5e-256: Google Cloud calls it v5litepod-256"),
    "--zone=": ("", "--zone: give the zone"),
    "--project=": ("", "--project: give the Google Cloud project"),
}


@pytest.mark.parametrize("flag", BAD)
def test_arguments_that_cannot_work_are_refused(cloud, flag):
    bad, message = BAD[flag]
    arguments = [bad if a.startswith(flag) else a for a in cloud.arguments()]
    status, output = cloud.run(*[a for a in arguments if a])
    assert status == 2
    assert message in output
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--spot", "--reserved"), "--spot and --reserved: give one of them"),
        (("--max-failures=0",), "--max-failures=0: at least 1"),
        (("--workers=4",), "--workers=4: unknown"),
        (("--type=v9-8",), "--type=v9-8: give --runtime-version for it as well"),
        (("--config=a.py",), "what is for launch/train.py goes after --"),
    ],
)
def test_options_that_cannot_work_are_refused(cloud, options, message):
    status, output = cloud.run(*cloud.arguments(*options))
    assert status == 2
    assert message in output
    assert cloud.calls() == []


@pytest.mark.parametrize("workdir", ["", "runs/c768", "gs://"])
def test_a_workdir_that_only_one_machine_sees_is_refused(cloud, workdir):
    arguments = [a for a in cloud.arguments() if not a.startswith("--workdir")]
    status, output = cloud.run(*arguments, *([f"--workdir={workdir}"] if workdir else []))
    assert status == 2
    assert f"--workdir='{workdir}': after --, give a place that all workers see" in output


@pytest.mark.slow
def test_only_what_is_committed_is_sent(cloud):
    train = cloud.checkout / "launch" / "train.py"
    train.write_text("raise SystemExit('not committed')")
    status, output = cloud.run(*cloud.arguments())
    assert status == 0, output
    assert "Not sent to the workers, because not committed:" in output
    assert "M launch/train.py" in output
    assert "not committed'" not in output


def test_coming_back_to_a_run(cloud):
    cloud.wish("wait", 0, step=5)
    cloud.wish("wait", 1, step=5)
    launcher = cloud.start(*cloud.arguments())
    cloud.wait_for(lambda: "step 5" in cloud.log(), "step 5")

    # From another terminal: the name is enough.
    status, output = cloud.run("status", "pod")
    assert status == 0, output
    assert "pod (v5p-16, us-east5-a): request ACTIVE, node READY" in output
    assert f"watched over by process {launcher.pid} on this machine" in output
    assert len(re.findall(r"w-[01] running ", output)) == 2
    assert "step 3 of 8" in output

    status, output = cloud.run(*cloud.arguments())
    assert status == 2
    assert f"process {launcher.pid} watches over pod already" in output

    status, output = cloud.run("fetch", "pod")
    assert status == 0, output
    assert (cloud.pods / "pod" / "training.jsonl").read_text() == '{"step": 3}\n'

    logs = cloud.start("logs", "pod")
    assert "going on from step 0" in cloud.first_line(logs)
    os.killpg(logs.pid, signal.SIGINT)
    assert logs.wait(timeout=10) == 130

    # Stopped: saved on the way, no longer watched over, and the slice is still there.
    status, output = cloud.run("stop", "pod")
    assert status == 0, output
    assert "Still costing money: pod (v5p-16, us-east5-a)" in output
    assert launcher.wait(timeout=10) == 143
    assert cloud.steps() == [3, 5]
    cloud.wait_for(lambda: cloud.on_workers() == [], "the workers to be quiet")
    assert cloud.request() is not None

    status, output = cloud.run("delete", "pod")
    assert status == 0, output
    assert cloud.request() is None
    assert "There is no pod" in cloud.run("status", "pod")[1]


def test_a_worker_without_a_new_python_gets_one(cloud, tmp_path):
    """Ubuntu 22.04 has Python 3.10; uv, from its package index, brings a newer one."""
    home = tmp_path / "worker"
    shutil.copytree(cloud.checkout / "launch", home / "code" / "launch")
    with (home / "code" / "launch" / "environment.sh").open("a") as environment:
        environment.write('make_environment() { echo "$1 with $LDM_SCALING_PYTHON"; }\n')
    (home / "bin").mkdir()
    for name in ("python", "python3.11", "python3.12", "python3.13"):
        (home / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
    (home / "bin" / "python3").write_text(
        f"""#!/bin/sh
        [ "$2" = pip ] || exit 1
        echo "$@" >{home}/asked
        mkdir -p {home}/uv/bin
        printf '#!/bin/sh\\necho "uv $*" >>{home}/asked\\necho /new/python\\n' >{home}/uv/bin/uv
        chmod +x {home}/uv/bin/uv
        """
    )
    for path in (home / "bin").iterdir():
        path.chmod(0o755)
    done = subprocess.run(
        ["bash", home / "code" / "launch" / "tpu_worker.sh", "environment"],
        env={"PATH": f"{home}/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "tpu with /new/python"
    asked = (home / "asked").read_text()
    assert re.search(rf"-m pip install .*--target {home}/uv uv==\d", asked)
    assert "uv python install --quiet 3.12" in asked


def test_help_is_the_header_of_the_script(cloud):
    status, output = cloud.run("--help")
    header = Path(cloud.checkout / "launch" / "tpu_pod.sh").read_text().split("set -euo")[0]
    assert status == 0
    assert [line.removeprefix("#").strip() for line in header.splitlines()[1:] if line] == [
        line.strip() for line in output.splitlines()
    ]
