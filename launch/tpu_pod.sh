#!/usr/bin/env bash
# Trains on a Google Cloud TPU slice, from nothing to fetched records. Creates the slice or uses the
# one of that name, installs the tested versions on all its workers, trains, shows one worker's log,
# creates the slice anew after every preemption and goes on, until the last step is done.
#
#   bash launch/tpu_pod.sh --name=c768 --type=v5p-128 --zone=us-east5-a --project=PROJECT --spot -- \
#     --config=configs/pretrain.py:768 --workdir=gs://BUCKET/c768 [--config.FIELD=VALUE ...]
#
# What follows -- is for launch/train.py. The workdir is a place that all workers see: gs://... or a
# mounted path. The code is that of the checked-out commit.
#
#   --name=NAME            of the slice, and of this run on this machine
#   --type=TYPE            v5p-128, v5litepod-256, v6e-256, ... (accelerator type)
#   --zone=, --project=    default: $CLOUDSDK_COMPUTE_ZONE, $CLOUDSDK_CORE_PROJECT
#   --spot | --reserved    cheap and preemptible, or from your reservation; default: on demand
#   --runtime-version=V    default: the one for JAX on that type
#   --max-failures=N       give up after so many failures in a row without a new step (5);
#                          preemptions do not count
#   --create-flag=FLAG     for gcloud ... queued-resources create, as in --create-flag=--network=lab
#   --ssh-flag=FLAG        for gcloud ... tpu-vm ssh and scp, as in --ssh-flag=--internal-ip
#   --keep                 do not delete the slice at the end
#   --adopt=IDENTITY       take over a slice that this launcher created elsewhere
#   --dry-run              print every command and run none
#
# Before the first time: ssh-add ~/.ssh/google_compute_engine (gcloud talks to many workers with it).
# Stop this at any point and start it again with the same arguments: it goes on where it was.
# Training does not depend on it, but recovery and deletion do: start it where it can stay, as in tmux
# on a small machine. Afterwards, or from another terminal:
#
#   bash launch/tpu_pod.sh status NAME     what there is, who made it, how far training is
#   bash launch/tpu_pod.sh logs NAME       the log of worker 0
#   bash launch/tpu_pod.sh fetch NAME      training.jsonl, to runs/pods/NAME
#   bash launch/tpu_pod.sh stop NAME       end training, saved; the slice stays and costs money
#   bash launch/tpu_pod.sh delete NAME     delete the slice; never one that it did not create
set -euo pipefail

cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
# shellcheck source=launch/tpu_training.sh
source launch/tpu_training.sh

exec 3>&1 # what a dry run prints, also from inside $(...)
verb=train keep="" adopt="" max_failures=5 failures=0 unanswered=0 reason="" details=""

# --- arguments -----------------------------------------------------------------------------------

parse() {
  local argument
  case "${1:-}" in
    --help | -h | "")
      sed -n '2,36s/^# \{0,1\}//p' "$0"
      exit
      ;;
    status | logs | fetch | stop | delete)
      verb="$1" name="${2:-}"
      [ -n "$name" ] || fail "$verb: give the name of the slice, as in: $verb c768"
      shift 2
      ;;
  esac
  while [ "$#" -gt 0 ]; do
    argument="$1"
    shift
    case "$argument" in
      --name=*) name="${argument#*=}" ;;
      --type=*) type="${argument#*=}" ;;
      --zone=*) zone="${argument#*=}" ;;
      --project=*) project="${argument#*=}" ;;
      --runtime-version=*) runtime="${argument#*=}" ;;
      --max-failures=*) max_failures="${argument#*=}" ;;
      --adopt=*) adopt="${argument#*=}" ;;
      --spot | --reserved)
        [ -z "$tier" ] || fail "--spot and --reserved: give one of them"
        tier="${argument#--}"
        ;;
      --create-flag=*) create_flags+=("${argument#*=}") ;;
      --ssh-flag=*) ssh_flags+=("${argument#*=}") ;;
      --keep) keep=1 ;;
      --dry-run) dry_run=1 ;;
      --)
        train_args=("$@")
        break
        ;;
      *) fail "$argument: unknown; see --help (what is for launch/train.py goes after --)" ;;
    esac
  done
}

# Fills in what was not given, and refuses what cannot work before it costs anything.
settle() {
  [[ "$name" =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
    fail "--name='$name': lower case letters, digits and hyphens, at most 63, a letter first"
  folder="${LDM_SCALING_PODS:-runs/pods}/$name"
  zone="${zone:-$(recall zone)}" project="${project:-$(recall project)}"
  zone="${zone:-${CLOUDSDK_COMPUTE_ZONE:-}}" project="${project:-${CLOUDSDK_CORE_PROJECT:-}}"
  type="${type:-$(recall type)}" workdir="$(recall workdir)" id="${adopt:-$(recall id)}"
  [ -n "$zone" ] || fail "--zone: give the zone of the slice, as in --zone=us-east5-a"
  [ -n "$project" ] || fail "--project: give the Google Cloud project of the slice"
  [[ "$max_failures" =~ ^[1-9][0-9]*$ ]] || fail "--max-failures=$max_failures: at least 1"
  [ "$verb" != train ] || settle_training
  if [ -n "$dry_run" ]; then
    id="${id:-IDENTITY}"
    return
  fi
  command -v gcloud >/dev/null ||
    fail "gcloud is not on PATH; see https://cloud.google.com/sdk/docs/install"
  mkdir -p "$folder"
  [ "$verb" = train ] || [ -n "$adopt" ] || return 0
  local field
  for field in zone project type workdir id; do remember "$field" "${!field}"; done
}

settle_training() {
  local argument
  case "$type" in # the table of https://cloud.google.com/tpu/docs/runtimes
    v5p-*) runtime="${runtime:-v2-alpha-tpuv5}" ;;
    v5litepod-*) runtime="${runtime:-v2-alpha-tpuv5-lite}" ;;
    v6e-*) runtime="${runtime:-v2-alpha-tpuv6e}" ;;
    v2-* | v3-* | v4-*) runtime="${runtime:-tpu-ubuntu2204-base}" ;;
    v5e-*) fail "--type=$type: Google Cloud calls it v5litepod-${type#v5e-}" ;;
    "") fail "--type: give the type of the slice, as in --type=v5p-128" ;;
  esac
  [ -n "$runtime" ] || fail "--type=$type: give --runtime-version for it as well"
  workdir=""
  for argument in ${train_args[@]+"${train_args[@]}"}; do
    case "$argument" in --workdir=*) workdir="${argument#*=}" ;; esac
  done
  case "$workdir" in
    gs://?* | /*) ;;
    *) fail "--workdir='$workdir': after --, give a place that all workers see: gs://... or /..." ;;
  esac
  commit="$(git rev-parse HEAD 2>/dev/null)" ||
    fail "the code is sent from a git checkout, and this is none"
  if [ -n "$(git status --porcelain)" ]; then
    note "Not sent to the workers, because not committed:"
    git status --short | sed 's/^/# /'
  fi
}

# --- how it ends ---------------------------------------------------------------------------------

# finish STATUS: fetches the records of a finished run and deletes what costs money.
finish() {
  stop_following
  [ "$1" -ne 0 ] || fetch_records || true
  look
  if [ "$slice" != absent ] && [ -n "$keep" ]; then
    note "Kept, and costing money: $(in_words); bash launch/tpu_pod.sh delete $name"
  elif [ "$slice" != absent ] && ! mine; then
    note "Left as it was found, and costing money: $(in_words)"
  else
    delete_slice || exit 1
  fi
  unsettled=""
  if [ "$1" -eq 0 ]; then
    note "Trained. Model: $workdir/export/final. Records: $folder/training.jsonl"
  fi
  if [ -n "$dry_run" ]; then
    note "Before that, whenever the slice is preempted, this, and all again from its creation on:"
    on_place gcloud compute tpus queued-resources delete "$name" --force
  fi
  exit "$1"
}

# failed WHAT [DETAILS]: counts; with too many in a row, ends the run and what costs money.
failed() {
  failures=$((failures + 1))
  note "$1 (failure $failures of $max_failures)"
  [ -z "${2:-}" ] || printf '%s\n' "$2" | indent
  if [ "$failures" -ge "$max_failures" ]; then
    note "Giving up after $failures failures in a row without a new step"
    finish 1
  fi
  pause "$failures"
}

forgive() { failures=0; }

not_started() { outcome=failed reason="$1" details="$2"; }

# --- one run -------------------------------------------------------------------------------------

# After a start that failed, or training that ended without reaching its goal: a preemption, which
# takes a while to show and is nobody's fault, or a failure.
recover() {
  for _ in 1 2; do
    [ "$outcome" != preempted ] || break
    pause
    look
    case "$slice" in ready | unknown | waiting) ;; *) outcome=preempted ;; esac
  done
  case "$outcome" in
    preempted)
      note "Preempted"
      return
      ;;
    interrupted) reason="Training ended before its last step" details="" ;;
    crashed) reason="Training ended with an error" details="" ;;
    unreachable)
      reason="The workers do not answer" details="$(complaint)"
      unanswered=$((unanswered + 1))
      ;;
  esac
  failed "$reason" "$details"
  if [ "$unanswered" -ge 2 ] && mine; then
    note "A host may be dead: $name is created anew"
    unanswered=0
    delete_slice || exit 1
  fi
}

train_to_the_end() {
  local arguments
  arguments="$(quote "${train_args[@]}")"
  if [ "$(recall finished)" = "$arguments" ]; then
    note "Finished before. To train again all the same, delete the line of it in $folder/state"
    finish 0
  fi
  while [ "$outcome" != finished ]; do
    ensure_slice
    mine || note "$name was not created by this launcher: it is used, and will not be deleted"
    start_training
    if [ "$outcome" = running ]; then
      unanswered=0
      watch
    fi
    [ "$outcome" = finished ] || recover
  done
  remember finished "$arguments"
  finish 0
}

# --- coming back to it ---------------------------------------------------------------------------

show_status() {
  look
  in_words
  if mine; then
    echo "created by this launcher (identity $id)"
  elif [ "$slice" != absent ]; then
    echo "not created by this launcher${owner:+ (its identity is $owner)}"
  fi
  if [ -n "$(launcher)" ]; then
    echo "watched over by process $(launcher) on this machine"
  else
    echo "watched over by nobody on this machine: after a preemption nobody goes on"
  fi
  [ "$slice" = ready ] || return 0
  on_workers all "$(worker_status)" || complaint
  on_workers 0 "$(worker progress "$workdir")" || [ "$?" -eq 3 ] || complaint
}

show_logs() {
  look
  [ "$slice" = ready ] || fail "$(in_words): no worker has a log to show"
  read -r _ _ start_id _ <<<"$(on_workers 0 "$(worker_status)")"
  [ "${start_id:-none}" != none ] || fail "training has not been started on $name"
  on_workers 0 "$(worker follow "$start_id" 1)"
}

parse "$@"
settle
if [ -z "$dry_run" ]; then
  trap let_go EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
fi
case "$verb" in
  train)
    [ -n "$dry_run" ] || lock
    train_to_the_end
    ;;
  status) show_status ;;
  logs) show_logs ;;
  fetch) fetch_records ;;
  stop)
    end_launcher
    on_workers all "$(worker stop)" || fail "$(complaint)"
    look
    echo "Stopped and saved. Still costing money: $(in_words)"
    ;;
  delete)
    end_launcher
    delete_slice
    ;;
esac
