#!/usr/bin/env bash
# What tpu_pod.sh asks of one worker of a slice, over ssh. Nobody else needs to call it.
#
#   tpu_worker.sh install COMMIT           the tested versions, in venv/; says so when it fails
#   tpu_worker.sh start ID ARGUMENTS...    training in the background, unless it runs already
#   tpu_worker.sh status                   one line: host, state, start, commit, time of the end
#   tpu_worker.sh follow | rest ID BYTE    the log of a start from that byte on; `follow` never ends
#   tpu_worker.sh last                     the last lines of the newest log
#   tpu_worker.sh progress WORKDIR         launch/progress.py: 0 at the goal, 3 before it
#   tpu_worker.sh stop                     SIGTERM, so that the state is saved; SIGKILL after a while
#
# Its folder holds code/ (the repository at one commit), venv/, commit, install.log, and of training:
# log-ID.txt, start (the ID of the newest start), pid, exit (its exit code), lock (held while it runs).
set -euo pipefail

folder="$(cd "$(dirname "$0")/../.." && pwd)"
worker="$(hostname)"
code="$folder/code"
export LDM_SCALING_VENV="$folder/venv"
# shellcheck source=launch/environment.sh
source "$code/launch/environment.sh"

# The kernel gives a lock back when its holders are gone, however they went, so that neither a crash
# nor a reboot leaves a training that seems to run.
running() { ! flock -n "$folder/lock" true; }

read_back() { cat "$folder/$1" 2>/dev/null || echo none; }

# Stock images of TPU VMs carry Ubuntu 22.04 with Python 3.10; uv brings a newer one without root.
environment() {
  if ! find_python >/dev/null 2>&1; then
    python3 -m pip install --quiet --upgrade --target "$folder/uv" uv==0.13.9
    "$folder/uv/bin/uv" python install --quiet 3.12
    LDM_SCALING_PYTHON="$("$folder/uv/bin/uv" python find --managed-python 3.12)"
    export LDM_SCALING_PYTHON
  fi
  make_environment tpu
}

install() {
  # In a shell of its own: inside a condition, bash would not stop at the first error.
  if ! bash "$0" environment >"$folder/install.log" 2>&1 </dev/null; then
    tail -n 15 "$folder/install.log" | sed "s/^/$worker: /" >&2
    echo "$worker: installation failed; the whole log is $folder/install.log" >&2
    exit 1
  fi
  echo "$1" >"$folder/commit"
}

start() {
  local id="$1"
  shift
  exec 9>"$folder/lock"
  if ! flock -n 9; then
    echo "$worker: training runs already"
    return
  fi
  rm -f "$folder/exit" "$folder/pid"
  echo "$id" >"$folder/start"
  # The lock goes over to the background process; a lost connection does not end that one.
  setsid nohup bash "$0" train "$@" >"$folder/log-$id.txt" 2>&1 </dev/null &
}

train() {
  local status=0
  cd "$code"
  prefer_tcmalloc
  # Named, so that a broken TPU is an error and not a training on the CPU that nobody notices.
  JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}" "$LDM_SCALING_VENV/bin/python" launch/train.py "$@" &
  echo "$!" >"$folder/pid"
  wait "$!" || status=$?
  echo "$status" >"$folder/exit"
}

status() {
  local state=idle ended=0
  if running; then
    state=running
  elif [ -e "$folder/exit" ]; then
    state="exited-$(read_back exit)" ended="$(stat -c %.3Y "$folder/exit")"
  elif [ -e "$folder/start" ]; then
    state=killed
  fi
  echo "$worker $state $(read_back start) $(read_back commit) $ended"
}

# Ends with the session that asked for it, also where that one could not say goodbye.
follow() { exec tail --pid="$PPID" -c "+$2" -F "$folder/log-$1.txt" 2>/dev/null; }

rest() { tail -c "+$2" "$folder/log-$1.txt"; }

last() { tail -n 20 "$folder/log-$(read_back start).txt"; }

progress() {
  cd "$code"
  JAX_PLATFORMS=cpu "$LDM_SCALING_VENV/bin/python" launch/progress.py --workdir="$1"
}

stop() {
  local pid waited=0 patience="${LDM_SCALING_STOP_SECONDS:-600}"
  pid="$(read_back pid)"
  while running; do
    [ "$waited" -gt 0 ] || kill -TERM "$pid" 2>/dev/null || true
    [ "$waited" -lt "$patience" ] || kill -KILL "$pid" 2>/dev/null || true
    if [ "$waited" -gt "$((patience + 60))" ]; then
      echo "$worker: process $pid does not end" >&2
      exit 1
    fi
    sleep 1
    waited=$((waited + 1))
  done
  status
}

case "${1:-}" in
  install | start | train | status | follow | rest | last | progress | stop | environment)
    "$@"
    ;;
  *)
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
