#!/usr/bin/env bash
# Sets everything up, then runs lint, types and tests. Arguments go to pytest.
#
#   bash launch/test.sh                the ordinary run
#   bash launch/test.sh --slow         long training, kills, parity against the installed peers
#   bash launch/test.sh -k sampling    some tests
set -euo pipefail

if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  exit
fi

cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

selection=()
extras="test"
if [ "${1:-}" = "--slow" ]; then
  shift
  extras=test,peers
  selection=(-m slow)
fi
make_environment "$extras"

say "Lint"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$(dirname "$PYTHON")/shellcheck" launch/*.sh .ci/run
say "Types"
"$PYTHON" -m mypy
say "Tests"
"$PYTHON" -m pytest --numprocesses=auto --maxprocesses=8 "${selection[@]}" "$@"
