# shellcheck shell=bash
# Sourced by tpu_pod.sh: one TPU slice and who made it; what this machine remembers; dry runs.
#
# Commands and fields are those of Google Cloud SDK 528 (gcloud compute tpus queued-resources, tpu-vm);
# states are those of the Cloud TPU API v2: queued resources, cloud.google.com/tpu/docs/queued-resources,
# and nodes, cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes.

# Filled by tpu_pod.sh from its arguments.
name="" zone="" project="" type="" runtime="" tier="" create_flags=() dry_run=""
# The folder where this machine remembers the slice, and the identity that it gave to it.
folder="" id=""
# Whether this process watches over the slice and has not brought it to an end.
unsettled=""
# How training stands: running, finished, interrupted, crashed, preempted, unreachable or failed.
outcome=""
# What `look` finds.
slice=unknown request="" node="" slice_type="" owner=""
# What a dry run is told instead of asking: there is nothing, until it "creates" the slice.
pretend=absent pretend_node=absent
poll="${LDM_SCALING_POLL_SECONDS:-30}"

# --- talking ------------------------------------------------------------------------------------

note() { if [ -n "$dry_run" ]; then echo "# $*"; else say "$(date +%H:%M:%S)  $*"; fi; }

fail() {
  echo "tpu_pod: $*" >&2
  exit 2
}

# The arguments as one line that a shell reads back as the same arguments.
quote() {
  local word line="" escaped="'\\''"
  for word; do
    case "$word" in
      "" | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$escaped}'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command, or prints it in a dry run. What gcloud says of its own doings goes to a file.
run() {
  if [ -n "$dry_run" ]; then
    quote "$@" >&3
  else
    "$@" </dev/null 2>"$folder/gcloud.err"
  fi
}

# ask ANSWER COMMAND...: a command that asks; a dry run goes on as if it had been told ANSWER.
ask() {
  local answer="$1"
  shift
  "$@" || return
  [ -z "$dry_run" ] || printf '%s\n' "$answer"
}

on_place() { run "$@" --zone="$zone" --project="$project" --quiet; }

# The last lines of what gcloud complained about.
complaint() {
  grep -Ev '^ *$|^Using ssh batch size|Attempting to connect' "$folder/gcloud.err" |
    tail -n "${1:-3}" || true
}

indent() { sed 's/^/    /'; }

# pause [TIMES]: so many intervals. Ends at once on a signal, which a plain sleep would make wait.
pause() {
  local times
  [ -z "$dry_run" ] || return 0
  for ((times = ${1:-1}; times > 0; times--)); do
    sleep "$poll" &
    wait "$!"
  done
}

# --- what this machine remembers of the slice -----------------------------------------------------

recall() { sed -n "s/^$1=//p" "$folder/state" 2>/dev/null || true; }

remember() {
  [ -z "$dry_run" ] || return 0
  { grep -v "^$1=" "$folder/state" 2>/dev/null || true; echo "$1=$2"; } >"$folder/state.new"
  mv "$folder/state.new" "$folder/state"
}

# --- one launcher at a time, and what it leaves -----------------------------------------------------

# The number of a process in the lock: of the launcher that watches over the slice, or of what follows
# the log for it. Nothing if it is gone, even if its number is another process's by now.
locked_by() {
  local process
  process="$(cat "$folder/lock/$1" 2>/dev/null)" || return 0
  if ps -o args= -p "$process" 2>/dev/null | grep -q tpu_pod; then echo "$process"; fi
}

launcher() { locked_by launcher; }

lock() {
  if ! mkdir "$folder/lock" 2>/dev/null && [ -n "$(launcher)" ]; then
    fail "process $(launcher) watches over $name already; bash launch/tpu_pod.sh status $name"
  fi
  # A launcher that was killed could not end what followed the log.
  stop_following "$(locked_by follower)"
  echo "$$" >"$folder/lock/launcher"
  unsettled=1
}

# However this ends, nobody has to wonder what is still running.
let_go() {
  local status="$?"
  trap '' INT TERM HUP
  stop_following
  [ "$(launcher)" = "$$" ] || exit "$status"
  rm -rf "$folder/lock"
  [ -n "$unsettled" ] || exit "$status"
  echo
  case "$slice" in
    absent) echo "Nothing had been created yet." ;;
    unknown) echo "It is not known whether $name exists in $zone; if so, it costs money." ;;
    asked) echo "$name ($type, $zone) was just being asked for: if it was granted, it costs money." ;;
    waiting) echo "Still asked for, and costing money once it is granted: $(in_words)" ;;
    ready)
      echo "Still there, and costing money until it is deleted: $(in_words)"
      [ "$outcome" != running ] || echo "Training goes on on its workers."
      mine || echo "This launcher did not create it and will not delete it."
      ;;
    *) echo "Still there: $(in_words)" ;;
  esac
  echo "To go on, give the same command again; or"
  echo "  bash launch/tpu_pod.sh status $name"
  echo "  bash launch/tpu_pod.sh delete $name"
  exit "$status"
}

# Ends the launcher that watches over the slice, which would otherwise start training again.
end_launcher() {
  local other
  other="$(launcher)"
  [ -n "$other" ] || return 0
  kill -TERM "$other" 2>/dev/null || true
  while [ -n "$(launcher)" ]; do sleep 0.2; done
}

# --- the slice ---------------------------------------------------------------------------------

# Sets slice to absent, waiting, ready, leaving, dead or unknown; and for people: request and node
# (the states that the API gives), slice_type, owner (the label that this launcher puts on).
look() {
  local answer fields="state.state,tpu.nodeSpec[0].node.acceleratorType"
  request="" node=- slice_type="" owner="" # -: not asked
  fields="$fields,tpu.nodeSpec[0].node.labels.ldm-scaling-launcher"
  if answer="$(ask "$pretend,$type,$id" on_place gcloud compute tpus queued-resources describe \
    "$name" --format="csv[no-heading]($fields)")"; then
    IFS=, read -r request slice_type owner <<<"$answer"
  elif grep -q NOT_FOUND "$folder/gcloud.err"; then
    request=absent
  fi
  if [ "$request" = ACTIVE ] || [ "$request" = absent ]; then
    # A slice may also have been made as a plain node, without a request.
    if answer="$(ask "$pretend_node,$type" on_place gcloud compute tpus tpu-vm describe "$name" \
      --format="csv[no-heading](state,acceleratorType.basename())")"; then
      IFS=, read -r node answer <<<"$answer"
      slice_type="${slice_type:-$answer}"
    elif grep -q NOT_FOUND "$folder/gcloud.err"; then
      node=absent
    else
      node=""
    fi
  fi
  case "$request/$node" in
    "/"* | *"/") slice=unknown ;;
    absent/absent) slice=absent ;;
    */READY) slice=ready ;;
    SUSPENDING/* | DELETING/* | */DELETING | */STOPPING) slice=leaving ;;
    SUSPENDED/* | FAILED/* | */PREEMPTED | */TERMINATED | */STOPPED | */HIDDEN) slice=dead ;;
    *) slice=waiting ;;
  esac
}

# Ours is only what carries the identity that this machine wrote down before it asked for the slice.
mine() { [ -n "$id" ] && [ "$owner" = "$id" ]; }

in_words() {
  case "$slice" in
    absent) echo "There is no $name in $zone" ;;
    unknown) echo "It is not known how $name in $zone is" ;;
    *)
      local node_too=", node $node"
      [ "$node" != - ] || node_too=""
      echo "$name (${slice_type:-$type}, $zone): request $request$node_too"
      ;;
  esac
}

create_slice() {
  if [ -z "$id" ]; then
    id="$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')"
    remember id "$id"
  fi
  note "Asking for $name: $type, ${tier:-on demand}, in $zone (identity $id)"
  slice=asked
  on_place gcloud compute tpus queued-resources create "$name" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$runtime" ${tier:+"--$tier"} \
    --labels="ldm-scaling-launcher=$id" ${create_flags[@]+"${create_flags[@]}"} || return
  pretend=ACTIVE pretend_node=READY
}

# Deletes the slice and returns when it is gone; refuses one that this launcher did not create.
delete_slice() {
  local attempt
  look
  [ "$slice" != absent ] || return 0
  if ! mine; then
    echo "tpu_pod: $name is not deleted, for this launcher did not create it" >&2
    [ -z "$owner" ] ||
      echo "It carries the identity $owner: if that was you, say so with --adopt=$owner" >&2
    return 1
  fi
  note "Deleting $name"
  for attempt in 1 2 3 4 5; do
    if on_place gcloud compute tpus queued-resources delete "$name" --force; then
      pretend=absent pretend_node=absent
    else
      complaint >&2
    fi
    look
    [ "$slice" != absent ] || return 0
    pause "$attempt"
  done
  echo "tpu_pod: $name could not be deleted, and costs money; see $folder/gcloud.err" >&2
  return 1
}

# Returns when the slice is ready: waits for it, creates it, or deletes what is dead and creates it.
ensure_slice() {
  local told="" since="$SECONDS" was
  while :; do
    look
    if [ "$told" != "$request/$node" ] || [ "$((SECONDS - since))" -ge 600 ]; then
      note "$(in_words)"
      [ "$slice" != unknown ] || complaint | indent
      told="$request/$node" since="$SECONDS"
    fi
    if [ "${slice_type:-$type}" != "$type" ]; then
      fail "--type=$type: $name exists as $slice_type; delete it first, or give another --name"
    fi
    case "$slice" in
      ready) return ;;
      absent)
        if create_slice; then continue; fi
        if grep -Eq 'INVALID_ARGUMENT|PERMISSION_DENIED|UNAUTHENTICATED|unrecognized arguments' \
          "$folder/gcloud.err"; then
          slice=absent
          fail "$name cannot be created: $(complaint)"
        fi
        failed "$name could not be created" "$(complaint)"
        ;;
      dead)
        mine || fail "$(in_words), and was not created by this launcher: delete it yourself," \
          "or give another --name${owner:+, or --adopt=$owner if you made it}"
        was="$request"
        delete_slice || exit 1
        if [ "$was" = FAILED ]; then failed "The request for $name failed"; else pause; fi
        ;;
      *) pause ;;
    esac
  done
}
