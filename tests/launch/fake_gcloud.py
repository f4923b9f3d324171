"""A stand-in for gcloud that keeps a small cloud in a folder and runs workers as local processes.

It knows the commands that launch/tpu_pod.sh uses, with the flags, states, messages and exit codes
of Google Cloud SDK 528, and refuses any other flag. The folder ($FAKE_CLOUD) holds:

  calls.jsonl           every call's arguments
  scenario.json         what is to go wrong; see `Scenario` in cloud.py
  requests/NAME.json    queued resources, as `describe` gives them
  nodes/NAME.json       TPU VMs
  workers/NAME-I/       the home of worker I; commands over ssh run there
  buckets/              gs://BUCKET/... lies in buckets/BUCKET/...
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

from machines import power_off, run_there

CLOUD = Path(os.environ["FAKE_CLOUD"])
EVERYWHERE = {"--zone", "--project", "--quiet", "--format"}
FLAGS = {
    "compute tpus queued-resources create": {
        *("--node-id", "--accelerator-type", "--runtime-version", "--labels"),
        *("--spot", "--reserved", "--network"),
    },
    "compute tpus queued-resources describe": set(),
    "compute tpus queued-resources delete": {"--force"},
    "compute tpus tpu-vm describe": set(),
    "compute tpus tpu-vm ssh": {"--worker", "--command", "--internal-ip"},
    "compute tpus tpu-vm scp": {"--worker", "--internal-ip"},
    "storage cp": set(),
}


def fail(command: str, message: str) -> None:
    print(f"ERROR: (gcloud.{command.replace(' ', '.')}) {message}", file=sys.stderr)
    sys.exit(1)


@contextlib.contextmanager
def one_at_a_time():
    """Calls run side by side, but change the cloud one after the other."""
    with (CLOUD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load(kind: str, name: str) -> dict | None:
    path = CLOUD / kind / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def store(kind: str, name: str, resource: dict | None) -> None:
    path = CLOUD / kind / f"{name}.json"
    if resource is None:
        path.unlink(missing_ok=True)
        return
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(resource))
    partial.replace(path)


def scenario() -> dict:
    return load(".", "scenario") or {}


def expect(**changes: int | str) -> None:
    store(".", "scenario", {**scenario(), **changes})


def used_up(name: str) -> bool:
    """Whether a number in the scenario has come down to nothing; counts it down."""
    left = scenario().get(name, 0)
    if left:
        expect(**{name: left - 1})
    return not left


def preempt(name: str) -> None:
    request, node = load("requests", name), load("nodes", name)
    if request:
        request["state"]["state"] = "SUSPENDED"
        store("requests", name, request)
    if node:
        store("nodes", name, {**node, "state": "PREEMPTED"})
    power_off(name, warning=2.0)


def look_up(resource: dict, path: str) -> str:
    """A field of a --format projection, as gcloud finds it; nothing where there is none."""
    value = resource
    for key in re.findall(r"[\w-]+(?:\(\))?", path):
        if key == "basename()":
            value = str(value).rsplit("/", 1)[-1]
        elif isinstance(value, list):
            value = value[int(key)] if int(key) < len(value) else ""
        else:
            value = value.get(key, "") if isinstance(value, dict) else ""
    return str(value)


def show(resource: dict, wanted: str) -> None:
    fields = re.fullmatch(r"csv\[no-heading\]\((.*)\)", wanted).group(1).split(",")
    print(",".join(look_up(resource, field) for field in fields))


def describe(command: str, kind: str, words: list[str], flags: dict) -> None:
    collection = {"requests": "queuedResources", "nodes": "nodes"}[kind]
    resource = load(kind, words[0])
    if kind == "requests" and resource and resource["state"]["state"] == "WAITING_FOR_RESOURCES":
        if not used_up("request_failures"):
            resource["state"]["state"] = "FAILED"
        elif used_up("polls_in_queue"):
            resource["state"]["state"] = "ACTIVE"
            make_node(words[0], resource["tpu"]["nodeSpec"][0]["node"])
        store(kind, words[0], resource)
    if resource is None:
        where = f"projects/{flags['--project']}/locations/{flags['--zone']}/{collection}"
        fail(command, f"NOT_FOUND: Resource '{where}/{words[0]}' was not found.")
    show(resource, flags["--format"])


def make_node(name: str, spec: dict) -> None:
    """A new node has new machines: nothing is left of the homes of the old ones."""
    for index in range(scenario().get("workers", 2)):
        home = CLOUD / "workers" / f"{name}-{index}"
        shutil.rmtree(home, ignore_errors=True)
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "hostname").write_text(f"#!/bin/sh\necho t1v-n-{name}-w-{index}\n")
        (home / "bin" / "hostname").chmod(0o755)
    store("nodes", name, {**spec, "name": name, "state": "READY"})


def create(command: str, words: list[str], flags: dict) -> None:
    if not used_up("create_failures"):
        fail(command, scenario().get("create_message", "RESOURCE_EXHAUSTED: no more capacity."))
    if load("requests", words[0]):
        fail(command, f"ALREADY_EXISTS: Resource '{words[0]}' already exists")
    labels = dict(pair.split("=", 1) for pair in flags["--labels"].split(","))
    for text in (*labels, *labels.values()):
        if not re.fullmatch(r"[a-z0-9_-]{1,63}", text):
            fail(command, f"INVALID_ARGUMENT: label {text!r}")
    node = {"acceleratorType": flags["--accelerator-type"], "labels": labels}
    resource = {
        "name": f"projects/p/locations/z/queuedResources/{words[0]}",
        "state": {"state": "WAITING_FOR_RESOURCES"},
        "tpu": {"nodeSpec": [{"node": node, "nodeId": flags["--node-id"]}]},
    }
    store("requests", words[0], resource)
    print(f"Create request issued for: [{words[0]}]", file=sys.stderr)


def delete(command: str, words: list[str], flags: dict) -> None:
    if load("requests", words[0]) is None:
        fail(command, f"NOT_FOUND: Resource '{words[0]}' was not found.")
    if load("nodes", words[0]) and "--force" not in flags:
        fail(command, "FAILED_PRECONDITION: the queued resource still has nodes")
    power_off(words[0])
    store("nodes", words[0], None)
    store("requests", words[0], None)


def homes(command: str, name: str, which: str) -> dict[int, Path]:
    node = load("nodes", name)
    if node is None:
        fail(command, f"NOT_FOUND: Resource '{name}' was not found.")
    if node["state"] != "READY":
        fail(command, f'This TPU has state "{node["state"]}", so it cannot be currently accessed.')
    paths = sorted((CLOUD / "workers").glob(f"{name}-[0-9]*"))
    chosen = range(len(paths)) if which == "all" else [int(which)]
    return {index: CLOUD / "workers" / f"{name}-{index}" for index in chosen}


def ssh(command: str, words: list[str], flags: dict) -> None:
    there = homes(command, words[0], flags.get("--worker", "0"))
    print(f"Using ssh batch size of 1. Attempting to SSH into {len(there)}", file=sys.stderr)
    sessions = {index: run_there(home, flags["--command"]) for index, home in there.items()}

    def hang_up(number: int, frame: object) -> None:
        for session in sessions.values():
            os.killpg(session.pid, signal.SIGHUP)
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hang_up)
    status = 0
    for index, session in sessions.items():
        code = session.wait()
        if code and len(sessions) > 1:
            said = f"##### Command execution on worker {index} failed with exit status {code}."
            print(f"{said} Continuing.", file=sys.stderr)
        status = status or code
    sys.exit(status)


def scp(command: str, words: list[str], flags: dict) -> None:
    source, destination = words
    if ":" in destination:
        name, path = destination.split(":", 1)
        for home in homes(command, name, flags["--worker"]).values():
            shutil.copy(source, home / path)
        return
    name, path = source.split(":", 1)
    (home,) = homes(command, name, flags["--worker"]).values()
    if not (home / path).exists():
        fail(command, f"scp: {path}: No such file or directory")
    shutil.copy(home / path, destination)


def storage_cp(command: str, words: list[str], flags: dict) -> None:
    source, destination = words
    path = CLOUD / "buckets" / source.removeprefix("gs://")
    if not path.exists():
        fail(command, f"The following URLs matched no objects or files:\n{source}")
    shutil.copy(path, destination)


def parse(arguments: list[str]) -> tuple[str, list[str], dict]:
    """Command, positional words and flags; ends as gcloud does at a flag that is not there."""
    command = next((known for known in FLAGS if " ".join(arguments).startswith(known + " ")), None)
    if command is None:
        print(f"ERROR: (gcloud) Invalid choice: {arguments[:4]}", file=sys.stderr)
        sys.exit(2)
    words, flags = [], {}
    for argument in arguments[len(command.split()) :]:
        name, _, value = argument.partition("=")
        if not argument.startswith("--"):
            words.append(argument)
        elif name in FLAGS[command] | EVERYWHERE:
            flags[name] = value
        else:
            print(
                f"ERROR: (gcloud.{command.replace(' ', '.')}) unrecognized arguments: {argument}",
                file=sys.stderr,
            )
            sys.exit(2)
    for name in ("--project", "--quiet", *(("--zone",) if "compute" in command else ())):
        if name not in flags:
            fail(command, f"{name} is missing: gcloud would guess, or ask")
    return command, words, flags


ACTIONS = {"create": create, "delete": delete, "ssh": ssh, "scp": scp, "cp": storage_cp}


def main(arguments: list[str]) -> None:
    with one_at_a_time():
        with (CLOUD / "calls.jsonl").open("a") as calls:
            calls.write(json.dumps(arguments) + "\n")
        # What a training asked for (see cloud.py) happens before the next command looks.
        for wish in (CLOUD / "wishes").glob("preempt-*"):
            wish.unlink()
            preempt(wish.name.removeprefix("preempt-"))
        command, words, flags = parse(arguments)
        if not used_up("no_network"):
            fail(command, "There was a problem refreshing your current auth tokens")
        verb = command.split()[-1]
        if verb == "ssh" and not used_up("no_ssh"):
            fail(command, "[/usr/bin/ssh] exited with return code [255].")
        if verb == "describe":
            describe(command, "nodes" if "tpu-vm" in command else "requests", words, flags)
        elif verb not in ("ssh", "scp"):
            ACTIONS[verb](command, words, flags)
    if verb in ("ssh", "scp"):
        ACTIONS[verb](command, words, flags)


if __name__ == "__main__":
    main(sys.argv[1:])
