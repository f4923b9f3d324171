#!/usr/bin/env bash
# For engines that restart a container by its exit code: trains, and ends with
#   0  where the last step is done,
#   3  where training was interrupted, and saved, before it,
#   the exit code of training otherwise.
#
#   bash launch/run_to_goal.sh --config=... --workdir=...      arguments of launch/train.py
set -euo pipefail

if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  exit
fi
cd "$(dirname "$0")/.."
python="${PYTHON:-python}" status=0

# As the first process of a container, only this shell gets the signal.
"$python" launch/train.py "$@" &
trap 'kill -TERM "$!" 2>/dev/null || true' TERM INT
wait "$!" || status=$?
while [ "$status" -gt 128 ]; do # a signal has ended `wait`, and perhaps not training
  signalled="$status" status=0
  wait "$!" || status=$?
  [ "$status" -ne "$signalled" ] || kill -0 "$!" 2>/dev/null || break
done
[ "$status" -eq 0 ] || exit "$status"
exec "$python" launch/progress.py "$@"
