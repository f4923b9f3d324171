# shellcheck shell=bash
# Sourced by tpu_pod.sh: training on the workers of a slice that is ready.

# shellcheck source=launch/tpu_slice.sh
source launch/tpu_slice.sh

# The commit to train from, where training keeps its state, and its arguments.
commit="" workdir="" train_args=() ssh_flags=()
# The name of the newest start, the process group that follows its log, the newest step ever saved.
start_id="" follower="" best_step=0

# --- its workers -------------------------------------------------------------------------------

# on_workers WORKER COMMAND: in a shell on one worker, or on `all`. Fails if it fails on any.
on_workers() {
  on_place gcloud compute tpus tpu-vm ssh "$name" --worker="$1" --command="$2" \
    ${ssh_flags[@]+"${ssh_flags[@]}"}
}

copy() {
  on_place gcloud compute tpus tpu-vm scp "$@" ${ssh_flags[@]+"${ssh_flags[@]}"}
}

# The command that calls tpu_worker.sh there.
worker() { quote bash "ldm-scaling/$name/code/launch/tpu_worker.sh" "$@"; }

# The same for `status`, which a new worker, without any script yet, can answer too.
worker_status() { echo "test -e ldm-scaling/$name/code || exec echo new idle none none 0; $(worker status)"; }

# Those on whom the last command failed, as gcloud names them; it does not where there is only one.
failed_workers() {
  sed -n 's/.*Command execution on worker \([0-9]*\) failed.*/\1/p' "$folder/gcloud.err" |
    sort -nu | paste -s -d ' ' - | grep . || echo 0
}

# The number of a worker by its host's name, as in t1v-n-0123abcd-w-3; 0 where it has none.
worker_number() {
  local number="${1##*-w-}"
  if [[ "$number" =~ ^[0-9]+$ ]]; then echo "$number"; else echo 0; fi
}

install_on_workers() {
  local home="ldm-scaling/$name" archive="ldm-scaling-$name.tar.gz" unpack
  run git archive --format=tar.gz --output="$folder/code.tar.gz" "$commit" || return
  copy "$folder/code.tar.gz" "$name:$archive" --worker=all || return
  unpack="rm -rf $home/new && mkdir -p $home/new && tar -xzf $archive -C $home/new"
  unpack="$unpack && rm -rf $home/code && mv $home/new $home/code"
  on_workers all "$unpack && $(worker install "$commit")"
}

# Sends the code, installs and starts on all workers, unless training already runs there.
start_training() {
  local answer
  if ! answer="$(ask "new idle none none 0" on_workers all "$(worker_status)")"; then
    outcome=unreachable
    return
  fi
  if grep -q ' running ' <<<"$answer"; then
    read -r _ _ start_id answer _ <<<"$(grep -m 1 ' running ' <<<"$answer")"
    note "Training runs already, from commit ${answer:0:12}; following it"
    outcome=running
    return
  fi
  if ! grep -vq ' exited-0 ' <<<"$answer" && [ "$(recall started)" = "$(quote "${train_args[@]}")" ]; then
    # It ended while nobody watched: at its goal, perhaps.
    read -r _ _ start_id _ <<<"$answer"
    show_log rest
    judge "$answer"
    [ "$outcome" != finished ] || return 0
  fi
  note "Installing commit ${commit:0:12} on all workers"
  if ! install_on_workers; then
    not_started "Installation failed on worker $(failed_workers)" "$(complaint 18)"
    return
  fi
  start_id="$(date -u +%Y%m%d-%H%M%S)"
  [ -z "$dry_run" ] || start_id=START
  note "Starting training on all workers"
  remember started "$(quote "${train_args[@]}")"
  if ! on_workers all "$(worker start "$start_id" "${train_args[@]}")"; then
    not_started "Training could not be started on worker $(failed_workers)" "$(complaint)"
    return
  fi
  outcome=running
}

# --- its log -----------------------------------------------------------------------------------

# show_log follow | rest: worker 0's log on the terminal and in a file, from the byte on that the file
# lacks, so that nothing is lost or shown twice however often the connection breaks.
show_log() {
  local log="$folder/log-$start_id.txt"
  if [ -n "$dry_run" ]; then
    on_workers 0 "$(worker "$1" "$start_id" 1)"
    return
  fi
  touch "$log"
  gcloud compute tpus tpu-vm ssh "$name" --worker=0 \
    --command="$(worker "$1" "$start_id" "$(($(wc -c <"$log") + 1))")" \
    ${ssh_flags[@]+"${ssh_flags[@]}"} --zone="$zone" --project="$project" --quiet \
    </dev/null 2>/dev/null | tee -a "$log" || true
}

start_following() {
  if [ -n "$dry_run" ]; then
    show_log follow
    return
  fi
  set -m # a process group of its own, so that it can be ended together with its children
  while :; do
    show_log follow
    sleep "$poll"
  done &
  follower=$!
  set +m
  echo "$follower" >"$folder/lock/follower"
}

# stop_following [GROUP]
stop_following() {
  local group="${1:-$follower}"
  [ -z "$group" ] || kill -TERM -- "-$group" 2>/dev/null || true
  follower=""
}

# --- how it goes -------------------------------------------------------------------------------

# Returns when training has ended or the slice is gone, and sets outcome.
watch() {
  local answer missed=0
  start_following
  while :; do
    pause
    look
    case "$slice" in
      unknown | waiting) continue ;; # a lost connection, or a repair: nothing is known to be wrong
      ready) ;;
      *)
        outcome=preempted
        break
        ;;
    esac
    if answer="$(ask "new exited-0 START $commit 0" on_workers 0 "$(worker_status)")"; then
      missed=0
      grep -q ' running ' <<<"$answer" || break
    elif [ "$((missed += 1))" -ge 4 ]; then
      outcome=unreachable
      break
    fi
  done
  stop_following
  [ "$outcome" = running ] || return 0
  show_log rest

  # Training is one program on all workers: where it ends on one, it soon ends on the others.
  for missed in 1 2 3 4 5 6 7 8 9 10; do
    answer="$(ask "new exited-0 START $commit 0" on_workers all "$(worker status)")" || true
    grep -q ' running ' <<<"$answer" || break
    pause
  done
  if [ -n "$answer" ]; then judge "$answer"; else outcome=unreachable; fi
}

# What an ended training has come to, by what `status` said of all workers.
judge() {
  local states="$1" first answer step
  outcome=interrupted
  if grep -q ' running ' <<<"$states"; then
    note "Ending training where it still runs"
    states="$(on_workers all "$(worker stop)")" || true
  fi
  if grep -vq ' exited-0 ' <<<"$states"; then
    outcome=crashed
    # Where it ended first is the cause; elsewhere it ended because of that.
    first="$(grep -v ' exited-0 ' <<<"$states" | sort -k 5,5n | head -n 1)"
    note "Training ended with an error, first on worker $(worker_number "${first%% *}"):"
    on_workers "$(worker_number "${first%% *}")" "$(worker last)" | indent || true
  fi
  if answer="$(ask "step N of N" on_workers 0 "$(worker progress "$workdir")")" &&
    [ "$outcome" = interrupted ]; then
    outcome=finished
  fi
  note "Training is at ${answer:-an unknown step}"
  step="$(sed -n 's/^step \([0-9]*\) of .*/\1/p' <<<"$answer")"
  if [ "${step:-0}" -gt "$best_step" ]; then
    best_step="$step"
    forgive
  fi
}

fetch_records() {
  local records="${workdir%/}/training.jsonl"
  note "Fetching $records"
  case "$workdir" in
    gs://*)
      run gcloud storage cp "$records" "$folder/training.jsonl" --project="$project" --quiet
      ;;
    *) copy "$name:$records" "$folder/training.jsonl" --worker=0 ;;
  esac || {
    note "$records could not be fetched"
    complaint | indent
    return 1
  }
}
