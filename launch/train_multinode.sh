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
# Exit code: 0, or the first worker's that failed: 2, 3, 4 are the user's to mend and end at once; anything else starts
# the gang again and ends, when the restarts are used up, with 75.
set -u -o pipefail

readonly RESTART=75

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
pids=()
stopping='' lifeline='' alive=''

start_local() {
  local -a addresses=()
  local index number
  for number in $(free_ports "$local_workers"); do addresses+=("127.0.0.1:$number"); done
  for ((index = 0; index < local_workers; index++)); do
    if ((local_workers > 1)); then
      TF_CONFIG=$(tf_config "$index" "${addresses[@]}") \
        setsid "$python" -m ssd_dist.cli.train "${train[@]}" > >(sed -u "s/^/[worker $index] /") 2>&1 &
    else
      setsid "$python" -m ssd_dist.cli.train "${train[@]}" > >(sed -u "s/^/[worker $index] /") 2>&1 &
    fi
    pids+=($!)
  done
}

# What the remote workers' connections read from: nothing comes, and it ends when this script does, however it does.
open_lifeline() {
  lifeline=$(mktemp -u) && mkfifo -m 600 "$lifeline" || exit 2
  exec {alive}<>"$lifeline"
}

start_hosts() {
  local -a addresses=()
  local index name command
  for name in "${names[@]}"; do addresses+=("${name#*@}:$port"); done
  for ((index = 0; index < ${#names[@]}; index++)); do
    name=${names[index]}
    printf -v command '%q ' env "TF_CONFIG=$(tf_config "$index" "${addresses[@]}")" \
      "$python" -m ssd_dist.cli.train "${train[@]}"
    # The remote worker ends with its connection: when stdin closes, it is told to stop.
    # shellcheck disable=SC2016  # the variables are the remote shell's
    printf -v command 'cd %q || exit 2; %s < /dev/null & worker=$!; { cat > /dev/null; kill $worker 2> /dev/null; } <&3 & guard=$!; wait $worker; code=$?; kill $guard 2> /dev/null; exit $code' \
      "$root" "$command"
    # shellcheck disable=SC2029  # the command is meant to be put together here
    setsid ssh -o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=3 "$name" "exec 3<&0; $command" \
      < "$lifeline" > >(exec sed -u "s/^/[$name] /" {alive}>&-) 2>&1 {alive}>&- &
    pids+=($!)
  done
}

signal_gang() {
  local pid
  for pid in "${pids[@]}"; do kill -s "$1" -- "-$pid" 2>/dev/null; done
}

any_alive() {
  local pid
  for pid in "${pids[@]}"; do kill -0 -- "-$pid" 2>/dev/null && return 0; done
  return 1
}

# TERM, a while to save, then KILL: no worker is left behind. A signal that was passed on is not repeated: the trainer
# takes a second one for "now" and would not save.
stop_gang() {
  local waited
  [[ -n $stopping ]] || signal_gang TERM
  for ((waited = 0; waited < grace_seconds * 5; waited++)); do
    any_alive || break
    sleep 0.2
  done
  signal_gang KILL
  wait "${pids[@]}" 2>/dev/null
}

# As TERM in any case: what a shell starts in the background ignores INT.
on_signal() {
  stopping=yes
  signal_gang TERM
}
trap on_signal TERM INT
trap 'signal_gang KILL; rm -f "$lifeline"' EXIT

# Waits until all workers ended well, or one did not; then takes the others down. Prints nothing, returns the code.
# It looks at each by its id: `wait -n` forgets a worker that ended before it was called.
watch_gang() {
  local running=("${pids[@]}") still pid code
  while ((${#running[@]})); do
    still=()
    for pid in "${running[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        still+=("$pid")
        continue
      fi
      wait "$pid"
      code=$?
      if ((code)); then
        stop_gang
        return "$code"
      fi
    done
    running=("${still[@]}")
    # The workers have got the signal and save: they are given their time.
    if [[ -n $stopping ]] && any_alive; then
      stop_gang
      return "$RESTART"
    fi
    sleep 0.2
  done
}

if [[ -z $local_workers && -z $hosts ]]; then run_scheduled; fi

[[ -z $hosts ]] || open_lifeline
for ((attempt = 0; ; attempt++)); do
  pids=()
  if [[ -n $local_workers ]]; then start_local; else start_hosts; fi
  watch_gang
  code=$?
  pids=()
  [[ -z $stopping ]] || exit "$RESTART"
  case $code in 0 | 2 | 3 | 4) exit "$code" ;; esac
  if ((attempt >= max_restarts)); then
    echo "a worker ended with code $code and $max_restarts restarts are used up" >&2
    exit "$RESTART"
  fi
  pause=$((2 ** (attempt < 6 ? attempt : 6)))
  echo "a worker ended with code $code; restart $((attempt + 1)) of $max_restarts in $pause s" >&2
  sleep "$pause" &
  wait $! || true
  [[ -z $stopping ]] || exit "$RESTART"
done
