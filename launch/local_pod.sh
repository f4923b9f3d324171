#!/usr/bin/env bash
# Runs one job as several processes on this machine, as the hosts of a pod do.
#
#   bash launch/local_pod.sh 2 launch/train.py --config=configs/pretrain.py:micro-16 --workdir=DIR
#   bash launch/local_pod.sh 4 --devices=2 launch/train.py ...      two CPU devices each
#
# Every process gets the arguments, and --coordinator, --num_processes and --process_id. What it says
# carries its number. A signal goes to all. Where one fails, the others are asked to end, and a while
# later made to; the exit code is that of the first that failed. PYTHON names another interpreter.
set -euo pipefail

if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  exit
fi
cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

fail() {
  echo "local_pod: $*" >&2
  exit 2
}

[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || fail "'${1:-}': give the number of processes first, as in: 2"
count="$1" devices=1
shift
case "${1:-}" in
  --devices=*)
    devices="${1#*=}"
    [[ "$devices" =~ ^[1-9][0-9]*$ ]] || fail "--devices=$devices: at least 1"
    shift
    ;;
esac
[ -f "${1:-}" ] || fail "'${1:-}': give a script to run, as in: launch/train.py"

[ -n "${PYTHON:-}" ] || make_environment ""
keep_memory_mapped
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
port="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
patience="${LDM_SCALING_STOP_SECONDS:-30}"
pipes="$(mktemp -d)"
processes=() readers=() status=0 give_up_at=""
trap 'rm -rf "$pipes"' EXIT

number_lines() {
  local line
  while IFS= read -r line || [ -n "$line" ]; do printf '[%s] %s\n' "$1" "$line"; done
}

# To those that still run, and their children.
signal_all() {
  local process
  for process in "${processes[@]}"; do kill "-$1" -- "-$process" 2>/dev/null || true; done
}

set -m # each a process group with signals as they are by default, also where bash would ignore Ctrl-C
for ((i = 0; i < count; i++)); do
  mkfifo "$pipes/$i"
  number_lines "$i" <"$pipes/$i" &
  readers+=("$!")
  "$PYTHON" "$@" --coordinator="127.0.0.1:$port" --num_processes="$count" --process_id="$i" \
    >"$pipes/$i" 2>&1 </dev/null &
  processes+=("$!")
done
trap 'signal_all INT' INT
trap 'signal_all TERM' TERM HUP

left="$count"
while [ "$left" -gt 0 ]; do
  left=0
  for ((i = 0; i < count; i++)); do
    if kill -0 "${processes[i]}" 2>/dev/null; then
      left=$((left + 1))
      continue
    fi
    code=0
    wait "${processes[i]}" || code=$?
    if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
      status="$code" give_up_at=$((SECONDS + patience))
      echo "local_pod: process $i ended with exit code $code; ending the others" >&2
      signal_all TERM
    fi
  done
  if [ -n "$give_up_at" ] && [ "$SECONDS" -ge "$give_up_at" ]; then
    signal_all KILL
  fi
  sleep 0.3 &
  wait "$!" || true
done
wait "${readers[@]}" || true
exit "$status"
