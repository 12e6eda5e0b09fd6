#!/usr/bin/env bash
# Trains on many workers and keeps them together: all run, or none does.
#
#   launch/train_multinode.sh --local=2 -- --config=configs/x.yaml --model_dir=RUN     workers on this host
#   launch/train_multinode.sh --hosts=a,b,c -- ...                                     one worker a host, over ssh
#   launch/train_multinode.sh -- ...                                                   inside Slurm, Kubernetes, Vertex
#
# Paths are the caller's; with --hosts they are relative to this project's folder, which is the same on all.
#
#   --port=N           port of the workers with --hosts (default 12345)
#   --max_restarts=N   how often a gang that lost a worker starts again (default 3); it goes on from its checkpoint
#   --grace_seconds=N  how long workers may take to save after a signal (default 35; above preemption.grace_seconds)
#   --python=PATH      the interpreter (default .venv/bin/python here, else python3)
#
# Exit code: 0, or 2, 3, 4 if a worker ended with it, which are the user's to mend and end all at once. Anything else
# starts the gang again; when the restarts are used up it is the worker's own code, but 75 for one that was interrupted
# (75) or killed (128 and more). After a signal 75, unless all had ended well, or one with 2, 3 or 4.
set -u -o pipefail

readonly RESTART=75
# Those who were killed when their grace was over, and what they said, take a moment to arrive.
readonly ARRIVAL_SECONDS=5
# A supervisor may signal all of its processes, and this script passes it on: the same one, not another.
readonly SAME_SIGNAL_SECONDS=2

fail() { echo "error: $*" >&2; exit 2; }

local_workers='' hosts='' names=() port=12345 max_restarts=3 grace_seconds=35
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3

while (($#)); do
  case $1 in
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --local=*) local_workers=${1#*=}; [[ $local_workers =~ ^[1-9][0-9]*$ ]] || fail "$1: give the number of workers" ;;
    --hosts=*) hosts=${1#*=}; [[ -n $hosts ]] || fail "$1: give the hosts' names, with commas between" ;;
    --port=*) port=${1#*=} ;;
    --max_restarts=*) max_restarts=${1#*=} ;;
    --grace_seconds=*) grace_seconds=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --) shift; break ;;
    *) fail "unknown flag $1; the trainer's own flags come after --" ;;
  esac
  shift
done
train=("$@")
((${#train[@]})) || fail "no flags for the trainer; give them after --, e.g. -- --config=configs/x.yaml --model_dir=RUN"
[[ -z $local_workers || -z $hosts ]] || fail "--local and --hosts exclude each other"
[[ $max_restarts =~ ^[0-9]+$ ]] || fail "--max_restarts=$max_restarts: give a number"
[[ $grace_seconds =~ ^[0-9]+$ ]] || fail "--grace_seconds=$grace_seconds: give a number"
[[ $port =~ ^[1-9][0-9]{0,4}$ && $port -lt 65536 ]] || fail "--port=$port: give a number from 1 to 65535"
[[ -n $hosts ]] || command -v "$python" > /dev/null || fail "--python=$python: there is no such interpreter"
IFS=, read -r -a names <<<"$hosts"
declare -A seen=()
for name in "${names[@]}"; do
  [[ -n $name && -z ${seen[$name]:-} ]] || fail "--hosts=$hosts: give each host once, with single commas between"
  seen[$name]=yes
done

# --- who the workers are -----------------------------------------------------------------------------------------

free_ports() {
  "$python" - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}

# tf_config INDEX ADDRESS...
tf_config() {
  local index=$1 list
  shift
  printf -v list '"%s", ' "$@"
  printf '{"cluster": {"worker": [%s]}, "task": {"type": "worker", "index": %d}}' "${list%, }" "$index"
}

# Under a scheduler each task runs this script: find the peers, become the worker. The scheduler restarts.
run_scheduled() {
  local -a peers=()
  local index name i
  if [[ -n ${TF_CONFIG:-} ]]; then # Vertex AI, Kubeflow: already said
    exec "$python" -m ssd_dist.cli.train "${train[@]}"
  elif [[ -n ${SLURM_PROCID:-} ]]; then
    name=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}") || fail "scontrol does not tell Slurm's nodes (SLURM_JOB_NODELIST=${SLURM_JOB_NODELIST:-})"
    for name in $name; do peers+=("$name:$port"); done
    index=$SLURM_PROCID
    ((${SLURM_NTASKS:-1} == ${#peers[@]})) || fail "Slurm runs ${SLURM_NTASKS:-1} tasks on ${#peers[@]} nodes; use one task a node"
  elif [[ -n ${JOB_COMPLETION_INDEX:-} ]]; then # a Kubernetes indexed job or JobSet
    [[ ${SSD_DIST_PEERS:-} =~ ^[1-9][0-9]*$ ]] || fail "SSD_DIST_PEERS=${SSD_DIST_PEERS:-}: set it to the number of pods"
    [[ ${SSD_DIST_PEER_PATTERN:-} == *{}* ]] || fail "SSD_DIST_PEER_PATTERN=${SSD_DIST_PEER_PATTERN:-}: set it to the pods' host name, with {} for the index"
    for ((i = 0; i < SSD_DIST_PEERS; i++)); do peers+=("${SSD_DIST_PEER_PATTERN//\{\}/$i}:$port"); done
    index=$JOB_COMPLETION_INDEX
  else
    fail "neither --local nor --hosts, and no Slurm, Kubernetes or Vertex environment found"
  fi
  if ((${#peers[@]} > 1)); then
    TF_CONFIG=$(tf_config "$index" "${peers[@]}")
    export TF_CONFIG
  fi
  exec "$python" -m ssd_dist.cli.train "${train[@]}"
}

# --- one gang ----------------------------------------------------------------------------------------------------

# Each worker leads a process group of its own (setsid), so that its children go with it.
pids=() parts=()
stopping='' deadline=''

# Prints what a worker says after its name. What ends the launcher does not end this: who says it is still saving.
label() {
  trap '' INT TERM HUP
  exec sed -u "s/^/[$1] /" 8>&- 9<&-
}

# Sets `parts`: the GPUs of this host that each local worker takes; empty where there are none.
split_gpus() {
  local -a all=()
  local count size index
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    [[ $CUDA_VISIBLE_DEVICES == -1 ]] || IFS=, read -r -a all <<<"$CUDA_VISIBLE_DEVICES"
  elif count=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU'); then
    for ((index = 0; index < count; index++)); do all+=("$index"); done
  fi
  ((${#all[@]} % local_workers == 0)) || fail "--local=$local_workers: ${#all[@]} GPUs do not divide over them;" \
    "use another number, or name the GPUs to use in CUDA_VISIBLE_DEVICES (empty: none)"
  size=$((${#all[@]} / local_workers))
  for ((index = 0; size && index < local_workers; index++)); do
    parts+=("$(IFS=,; echo "${all[*]:index * size:size}")")
  done
}

start_local() {
  local -a addresses=() command=(setsid)
  local index number
  # Where this script is killed, its workers are told to stop.
  if command -v setpriv > /dev/null; then command+=(setpriv --pdeathsig TERM); fi
  command+=(env)
  for number in $(free_ports "$local_workers"); do addresses+=("127.0.0.1:$number"); done
  for ((index = 0; index < local_workers; index++)); do
    local -a environment=(-u TF_CONFIG)
    ((local_workers == 1)) || environment=("TF_CONFIG=$(tf_config "$index" "${addresses[@]}")")
    ((${#parts[@]} == 0)) || environment+=("CUDA_VISIBLE_DEVICES=${parts[index]}")
    "${command[@]}" "${environment[@]}" "$python" -m ssd_dist.cli.train "${train[@]}" \
      > >(label "worker $index") 2>&1 &
    pids+=($!)
  done
}

# What the remote workers' connections read from, 9: nothing comes, and it ends when 8 is closed, or with this script.
open_lifeline() {
  local path
  path=$(mktemp -u) && mkfifo -m 600 "$path" || exit 2
  exec 8<> "$path"
  exec 9< "$path"
  rm "$path"
}

# On each host, under its shell: a worker and its guard. When the lifeline ends, the guard tells the worker to stop, and
# kills it when its grace is over; what the worker says and its exit code still come through the connection.
# shellcheck disable=SC2016  # the variables are the remote shell's
readonly GUARDED='exec 3<&0; cd %q || exit 2; %s < /dev/null 3<&- & worker=$!
{ cat; kill $worker; left=%d; while [ $left -gt 0 ] && kill -0 $worker; do sleep 1; left=$((left - 1)); done
kill -KILL $worker; } <&3 > /dev/null 2>&1 & guard=$!
wait $worker; code=$?; kill $guard 2> /dev/null; exit $code'

start_hosts() {
  local -a addresses=()
  local index name command
  for name in "${names[@]}"; do addresses+=("${name#*@}:$port"); done
  open_lifeline
  for ((index = 0; index < ${#names[@]}; index++)); do
    name=${names[index]}
    printf -v command '%q ' env "TF_CONFIG=$(tf_config "$index" "${addresses[@]}")" \
      "$python" -m ssd_dist.cli.train "${train[@]}"
    # shellcheck disable=SC2059  # the format is the constant above
    printf -v command "$GUARDED" "$root" "$command" "$grace_seconds"
    # The connection outlives what is sent to all processes of this script.
    (
      trap '' INT TERM HUP
      # shellcheck disable=SC2029  # the command is meant to be put together here
      exec setsid ssh -o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=3 "$name" "$command" \
        <&9 8>&- 9<&-
    ) > >(label "$name") 2>&1 &
    pids+=($!)
  done
}

signal_gang() {
  local pid
  # A worker that has only just been started has no group yet.
  for pid in "${pids[@]}"; do kill -s "$1" -- "-$pid" 2> /dev/null || kill -s "$1" "$pid" 2> /dev/null; done
}

# Asks the gang to save and to end, once; it is killed when its grace is over. As TERM in any case: what a shell starts
# in the background ignores INT.
ask_gang() {
  [[ -z $deadline ]] || return
  deadline=$((SECONDS + grace_seconds))
  if [[ -n $hosts ]]; then
    exec 8>&-
    deadline=$((deadline + ARRIVAL_SECONDS))
  else
    signal_gang TERM
  fi
}

# Once more, later: now.
on_signal() {
  if [[ -n $stopping ]] && ((SECONDS - stopping > SAME_SIGNAL_SECONDS)); then
    deadline=0
  else
    stopping=${stopping:-$SECONDS}
    ask_gang
  fi
}
trap on_signal TERM INT HUP
trap 'signal_gang KILL' EXIT

# Waits until all workers have ended; if one does not end well, the others are asked to. Sets `first`, the first code
# that was not 0, and `code`, that of the gang: the user's to mend before a bug before an interruption.
# It looks at each by its id: `wait -n` forgets a worker that ended before it was called.
watch_gang() {
  local running=("${pids[@]}") still pid own=0 again=0 mend=0
  first=0
  while ((${#running[@]})); do
    still=()
    for pid in "${running[@]}"; do
      if kill -0 "$pid" 2> /dev/null; then
        still+=("$pid")
        continue
      fi
      wait "$pid"
      code=$?
      ((code == 0 || first)) || first=$code
      case $code in
        0) continue ;;
        2 | 3 | 4) mend=$code ;;
        *) if ((code == RESTART || code >= 128)); then again=$RESTART; else own=$code; fi ;;
      esac
      ask_gang
    done
    running=("${still[@]}")
    [[ -z $deadline ]] || ((SECONDS <= deadline)) || signal_gang KILL
    ((${#running[@]} == 0)) || sleep 0.2
  done
  # What they have left behind.
  signal_gang KILL
  pids=()
  code=$((mend ? mend : own ? own : again))
}

if [[ -z $local_workers && -z $hosts ]]; then run_scheduled; fi

((${local_workers:-1} == 1)) || split_gpus
for ((attempt = 0; ; attempt++)); do
  deadline=''
  if [[ -n $local_workers ]]; then start_local; else start_hosts; fi
  # A signal that came while they were started has not reached all.
  if [[ -n $stopping ]]; then deadline='' && ask_gang; fi
  watch_gang
  case $code in 0 | 2 | 3 | 4) exit "$code" ;; esac
  [[ -z $stopping ]] || exit "$RESTART"
  if ((attempt >= max_restarts)); then
    echo "a worker ended with code $first and $max_restarts restarts are used up" >&2
    exit "$code"
  fi
  pause=$((2 ** (attempt < 6 ? attempt : 6)))
  echo "a worker ended with code $first; restart $((attempt + 1)) of $max_restarts in $pause s" >&2
  sleep "$pause" &
  wait $! || true
  [[ -z $stopping ]] || exit "$RESTART"
done
