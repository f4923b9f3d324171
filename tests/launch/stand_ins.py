"""What stands in for installation and training on the workers of cloud.py."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# After the real launch/environment.sh: an installation that takes no time.
ENVIRONMENT = f"""
make_environment() {{
  echo "Collecting jax[$1]"
  if [ -e "$FAKE_CLOUD/wishes/broken-install-$(basename "$FAKE_WORKER")" ]; then
    echo "ERROR: No matching distribution found for jax[$1]" >&2
    return 1
  fi
  mkdir -p "$LDM_SCALING_VENV/bin"
  printf '#!/bin/sh\\nexec {sys.executable} "$@"\\n' >"$LDM_SCALING_VENV/bin/python"
  chmod +x "$LDM_SCALING_VENV/bin/python"
}}
"""

# Counts steps as training does: all workers together; SIGTERM has worker 0 save, and ends well.
TRAIN = """
import json, os, pathlib, signal, sys, time

flags = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
cloud, home = pathlib.Path(os.environ["FAKE_CLOUD"]), pathlib.Path(os.environ["FAKE_WORKER"])
workdir = pathlib.Path(flags["workdir"].replace("gs://", f"{cloud}/buckets/"))
wishes, first = cloud / "wishes", home.name.endswith("-0")
goal = int(flags["config.num_steps"])
if goal < 1:
    sys.exit(f"train: num_steps={goal}: must be at least 1")
assert os.environ["JAX_PLATFORMS"] == "tpu,cpu"

def wished(name):
    path = wishes / f"{name}-{home.name}"
    return path.exists() and int(path.read_text()) == step

def once(name):
    return wished(name) and not (wishes / f"{name}-{home.name}").unlink()

def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))

(workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
(workdir / "died").unlink(missing_ok=True)
if first:
    write(workdir / "config.json", {"num_steps": goal})
step = max([0, *(int(path.name) for path in (workdir / "checkpoints").iterdir())])
print("going on from step", step, flags.get("config.name", ""), flush=True)
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
while step < goal and not stopping:
    time.sleep(0.02)
    step += 1
    print("step", step, flush=True)
    if (workdir / "died").exists():
        time.sleep(0.3)  # it takes a while to notice
        sys.exit("another host is gone")
    if wished("crash") or once("crash-once"):
        (workdir / "died").touch()
        raise RuntimeError("a bug in step " + str(step))
    if once("lose-slice"):
        (wishes / ("preempt-" + home.name.rpartition("-")[0])).touch()
        while not stopping:
            time.sleep(0.01)
    while wished("wait") and not stopping:
        time.sleep(0.01)
    if first and (stopping or step % 3 == 0 or step == goal):
        (workdir / "checkpoints" / str(step)).mkdir(exist_ok=True)
        with (workdir / "training.jsonl").open("a") as records:
            records.write(json.dumps({"step": step}) + "\\n")
if first and step == goal:
    write(workdir / "export" / "final" / "training.json", {"step": step})
print("saved step", step, flush=True)
"""


# The real one, to which a bucket is a folder.
PROGRESS = f"""
import os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
buckets = os.environ["FAKE_CLOUD"] + "/buckets/"
sys.argv = [argument.replace("gs://", buckets) for argument in sys.argv]
runpy.run_path({str(ROOT / "launch" / "progress.py")!r}, run_name="__main__")
"""
