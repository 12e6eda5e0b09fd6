#!/usr/bin/env bash
# Starts one training worker per host or process and keeps them together: all run, or none does.
#
#   launch/train_multinode.sh --local=2 -- --config=configs/x.yaml --model_dir=RUN     workers on this host
#   launch/train_multinode.sh --hosts=a,b,c -- ...                                     one worker per host, over ssh
#   launch/train_multinode.sh -- ...                                                   inside Slurm, Kubernetes, Vertex
#
# A host is a name, user@name, an IPv4 address, or an IPv6 address in brackets.
# Relative paths refer to the current folder; with --hosts, to the folder of this project, which must have the same path
# on all hosts.
#
#   --port=N           port of the workers, except with --local (default 12345)
#   --max_restarts=N   number of restarts after a lost worker (default 3); the run resumes from its last checkpoint
#   --grace_seconds=N  seconds that workers get to save after a signal (default 35; more than preemption.grace_seconds)
#   --python=PATH      Python interpreter (default .venv/bin/python of this project, else python3)
#
# By SSD_DIST_SECRET the workers of a job recognize each other when they start. With --local and --hosts, this script
# creates a random value unless the variable is set. It never appears on a command line.
#
# Exit code: 0 if all workers ended with 0. If a worker ends with 2, 3 or 4 (an error that the user must fix), all
# workers are stopped and the exit code is that of the worker. After any other code all workers are started again; when
# no restarts are left, the exit code is 75 if workers were interrupted (75) or killed (128 and more), else that of the
# failed worker. After a signal it is 75, unless all workers ended with 0, or one with 2, 3 or 4. It is 2 if the Python
# interpreter cannot be started (126, 127), or if ssh fails (255) soon after the start of every attempt.
set -u -o pipefail

readonly RESTART=75
# Time for the exit codes and the last output of remote workers to arrive.
readonly ARRIVAL_SECONDS=5
# An ssh that fails later has lost its connection.
readonly CONNECT_SECONDS=20
# Signals within this time count as one: a supervisor may signal this script and the workers, and this script passes its
# own signal on to them.
readonly SAME_SIGNAL_SECONDS=2

# Prints an error in one line: text of the user may contain line breaks and terminal sequences.
fail() {
  local text="error: $*"
  printf '%s\n' "${text//[[:cntrl:]]/?}" >&2
  exit 2
}

# A host name or IPv4 address, or an IPv6 address in brackets. Such a text is never an option of ssh, and needs no quotes
# in JSON or in a shell.
readonly HOST='([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]*:[0-9A-Fa-f:]*\])'

# In the C locale, the ranges contain ASCII characters only.
is_host() { local LC_ALL=C; [[ $1 =~ ^$HOST$ ]]; }
is_user_at_host() { local LC_ALL=C; [[ $1 =~ ^([A-Za-z0-9_][A-Za-z0-9._-]*@)?$HOST$ ]]; }
is_number() { [[ $1 =~ ^(0|[1-9][0-9]{0,8})$ ]]; }

local_workers='' hosts='' names=() port=12345 max_restarts=3 grace_seconds=35
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3

while (($#)); do
  case $1 in
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --local=*)
      local_workers=${1#*=}
      [[ $local_workers =~ ^[1-9][0-9]*$ ]] || fail "$1: not a number of workers; use --local=N"
      ;;
    --hosts=*) hosts=${1#*=}; [[ -n $hosts ]] || fail "$1: no hosts; use --hosts=a,b,c" ;;
    --port=*) port=${1#*=} ;;
    --max_restarts=*) max_restarts=${1#*=} ;;
    --grace_seconds=*) grace_seconds=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --) shift; break ;;
    *) fail "unknown flag $1; put the trainer's flags after --" ;;
  esac
  shift
done
train=("$@")
((${#train[@]})) || fail "no flags for the trainer; put them after --, e.g. -- --config=configs/x.yaml --model_dir=RUN"
[[ -z $local_workers || -z $hosts ]] || fail "--local and --hosts exclude each other; use one of them"
is_number "$max_restarts" || fail "--max_restarts=$max_restarts: not a number; use 0 or more"
is_number "$grace_seconds" || fail "--grace_seconds=$grace_seconds: not a number; use 0 or more"
[[ $port =~ ^[1-9][0-9]{0,4}$ && $port -lt 65536 ]] || fail "--port=$port: not a port; use a number from 1 to 65535"
[[ -n $hosts ]] || command -v "$python" > /dev/null ||
  fail "--python=$python: not found; use the path of a Python interpreter"
declare -A seen=()
left=${hosts:+$hosts,}
while [[ -n $left ]]; do
  name=${left%%,*} left=${left#*,}
  [[ -n $name && -z ${seen[$name]:-} ]] ||
    fail "--hosts=$hosts: empty or repeated host; give each host once, separated by single commas"
  is_user_at_host "$name" ||
    fail "--hosts=$hosts: '$name' is not a host; use names such as node-1, me@node-1, 10.0.0.1 or [2001:db8::1]"
  names+=("$name")
  seen[$name]=yes
done
if [[ -n $local_workers || -n $hosts ]]; then
  export SSD_DIST_SECRET=${SSD_DIST_SECRET:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
  [[ $SSD_DIST_SECRET != *[[:cntrl:]]* ]] || fail "SSD_DIST_SECRET: contains a control character; use printable text"
fi

# --- The workers of the cluster -----------------------------------------------------------------------------------

free_ports() {
  "$python" - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}

# Prints the TF_CONFIG of a worker: tf_config INDEX ADDRESS...
tf_config() {
  local index=$1 list
  shift
  printf -v list '"%s", ' "$@"
  printf '{"cluster": {"worker": [%s]}, "task": {"type": "worker", "index": %d}}' "${list%, }" "$index"
}

# Under a scheduler each task runs this script, finds its peers and becomes the worker. The scheduler does the restarts.
run_scheduled() {
  local -a peers=()
  local index tasks names name i
  if [[ -n ${TF_CONFIG:-} ]]; then # set by Vertex AI and Kubeflow
    exec "$python" -m ssd_dist.cli.train "${train[@]}"
  elif [[ -n ${SLURM_PROCID:-} ]]; then
    index=$SLURM_PROCID tasks=${SLURM_NTASKS:-1}
    names=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}") ||
      fail "scontrol cannot list the nodes of SLURM_JOB_NODELIST=${SLURM_JOB_NODELIST:-}; run inside a Slurm job"
    while read -r name; do peers+=("$name"); done <<<"$names"
    [[ $tasks == "${#peers[@]}" ]] ||
      fail "Slurm runs $tasks tasks on ${#peers[@]} nodes; use one task per node (--ntasks-per-node=1)"
  elif [[ -n ${JOB_COMPLETION_INDEX:-} ]]; then # a Kubernetes indexed job or JobSet
    index=$JOB_COMPLETION_INDEX
    [[ ${SSD_DIST_PEERS:-} =~ ^[1-9][0-9]*$ ]] ||
      fail "SSD_DIST_PEERS=${SSD_DIST_PEERS:-}: not a number; set it to the number of pods"
    [[ ${SSD_DIST_PEER_PATTERN:-} == *{}* ]] ||
      fail "SSD_DIST_PEER_PATTERN=${SSD_DIST_PEER_PATTERN:-}: set it to the pods' host name, with {} for the index"
    for ((i = 0; i < SSD_DIST_PEERS; i++)); do peers+=("${SSD_DIST_PEER_PATTERN//\{\}/$i}"); done
  else
    fail "neither --local nor --hosts, and no Slurm, Kubernetes or Vertex environment; give --local=N or --hosts=a,b,c"
  fi
  for name in "${peers[@]}"; do
    is_host "$name" || fail "'$name' is not a host name; correct SLURM_JOB_NODELIST or SSD_DIST_PEER_PATTERN"
  done
  is_number "$index" || fail "the index of this worker is '$index'; set SLURM_PROCID or JOB_COMPLETION_INDEX to a number"
  if ((${#peers[@]} > 1)); then
    TF_CONFIG=$(tf_config "$index" "${peers[@]/%/:$port}")
    export TF_CONFIG
  fi
  exec "$python" -m ssd_dist.cli.train "${train[@]}"
}

# --- Starting and stopping all workers ----------------------------------------------------------------------------

# Each worker is the leader of its own process group (setsid), so that signals reach its child processes as well.
pids=() parts=()
stopping='' deadline=''

# Prefixes each line of a worker's output with its name. Ignores signals, because the worker still prints while it saves.
label() {
  local LC_ALL=C line
  trap '' INT TERM HUP
  exec 8>&- 9<&-
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

# Sets `parts` to the GPUs of each local worker; empty without GPUs.
split_gpus() {
  local -a all=()
  local count size index
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    [[ $CUDA_VISIBLE_DEVICES == -1 ]] || IFS=, read -r -a all <<<"$CUDA_VISIBLE_DEVICES"
  elif count=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU'); then
    for ((index = 0; index < count; index++)); do all+=("$index"); done
  fi
  ((${#all[@]} % local_workers == 0)) ||
    fail "--local=$local_workers: ${#all[@]} GPUs cannot be divided equally between them;" \
    "use another number, or list the GPUs to use in CUDA_VISIBLE_DEVICES (empty: none)"
  size=$((${#all[@]} / local_workers))
  for ((index = 0; size && index < local_workers; index++)); do
    parts+=("$(IFS=,; echo "${all[*]:index * size:size}")")
  done
}

start_local() {
  local -a addresses=() command=(setsid)
  local index number
  # Workers get SIGTERM if this script is killed.
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

# Opens the lifeline, a pipe that nobody writes to: the ssh connections read file descriptor 9, which reaches its end
# when file descriptor 8 is closed or this script ends.
open_lifeline() {
  local path
  path=$(mktemp -u) && mkfifo -m 600 "$path" || exit 2
  exec 8<> "$path"
  exec 9< "$path"
  rm "$path"
}

# Prints words so that every POSIX shell reads them unchanged.
quote() {
  local word
  for word in "$@"; do
    printf "'"
    while [[ $word == *\'* ]]; do
      printf "%s'\\\\''" "${word%%\'*}"
      word=${word#*\'}
    done
    printf "%s' " "$word"
  done
}

# Runs on each host in its shell: a worker and its guard. The first line of the input is the secret; the rest is the
# lifeline. When the lifeline ends, the guard sends SIGTERM to the worker and kills it when the grace time is over. The
# worker's output and exit code still arrive over the connection.
# shellcheck disable=SC2016  # the variables are the remote shell's
readonly GUARDED='IFS= read -r SSD_DIST_SECRET; export SSD_DIST_SECRET; exec 3<&0; cd %s || exit 2; %s < /dev/null 3<&- & worker=$!
{ cat; kill $worker; left=%d; while [ $left -gt 0 ] && kill -0 $worker; do sleep 1; left=$((left - 1)); done
kill -KILL $worker; } <&3 > /dev/null 2>&1 & guard=$!
wait $worker; code=$?; kill $guard 2> /dev/null; exit $code'

start_hosts() {
  local -a addresses=()
  local index name command
  local -a worker
  for name in "${names[@]}"; do addresses+=("${name#*@}:$port"); done
  open_lifeline
  for ((index = 0; index < ${#names[@]}; index++)); do
    name=${names[index]}
    worker=(env "TF_CONFIG=$(tf_config "$index" "${addresses[@]}")" "$python" -m ssd_dist.cli.train "${train[@]}")
    # shellcheck disable=SC2059  # the format is a constant
    printf -v command "$GUARDED" "$(quote "$root")" "$(quote "${worker[@]}")" "$grace_seconds"
    # The connection ignores signals that are sent to all processes of this script.
    (
      trap '' INT TERM HUP
      # ssh expects IPv6 addresses without brackets.
      # shellcheck disable=SC2029  # the command is expanded on this side on purpose
      exec setsid ssh -o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -- "${name//[][]/}" "$command" \
        < <(printf '%s\n' "$SSD_DIST_SECRET"; exec cat <&9 8>&- 9<&-) 8>&- 9<&-
    ) > >(label "$name") 2>&1 &
    pids+=($!)
  done
}

signal_workers() {
  local pid
  # A worker that has just been started may have no process group yet.
  for pid in "${pids[@]}"; do kill -s "$1" -- "-$pid" 2> /dev/null || kill -s "$1" "$pid" 2> /dev/null; done
}

# Requests all workers to save and exit, once; they are killed when the grace time is over. Always sends TERM:
# background processes of a shell ignore INT.
request_stop() {
  [[ -z $deadline ]] || return
  deadline=$((SECONDS + grace_seconds))
  if [[ -n $hosts ]]; then
    exec 8>&-
    deadline=$((deadline + ARRIVAL_SECONDS))
  else
    signal_workers TERM
  fi
}

# The first signal requests a stop; a second signal kills the workers at once.
on_signal() {
  if [[ -n $stopping ]] && ((SECONDS - stopping > SAME_SIGNAL_SECONDS)); then
    deadline=0
  else
    stopping=${stopping:-$SECONDS}
    request_stop
  fi
}
trap on_signal TERM INT HUP
trap 'signal_workers KILL' EXIT

# Waits until all workers have ended; if one fails, requests the others to stop. Sets `first` to the first exit code
# other than 0, and `code` to the exit code of all workers: errors of the user take precedence over bugs, bugs over
# interruptions. Checks each process id, because `wait -n` does not report workers that ended before the call.
watch_workers() {
  local running=("${pids[@]}") still pid bug=0 interrupted=0 user_error=0
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
        2 | 3 | 4) user_error=$code ;;
        126 | 127) user_error=2 && echo "error: a worker could not be started: install the package, or pass --python" >&2 ;;
        *) if ((code == RESTART || code >= 128)); then interrupted=$RESTART; else bug=$code; fi ;;
      esac
      request_stop
    done
    running=("${still[@]}")
    [[ -z $deadline ]] || ((SECONDS <= deadline)) || signal_workers KILL
    ((${#running[@]} == 0)) || sleep 0.2
  done
  # Child processes that the workers left running.
  signal_workers KILL
  pids=()
  code=$((user_error ? user_error : bug ? bug : interrupted))
}

if [[ -z $local_workers && -z $hosts ]]; then run_scheduled; fi

((${local_workers:-1} == 1)) || split_gpus
# Whether ssh has failed, with its own exit code 255, soon after the start of every attempt.
unreachable=1
for ((attempt = 0; ; attempt++)); do
  deadline='' started=$SECONDS
  if [[ -n $local_workers ]]; then start_local; else start_hosts; fi
  # A signal during the start has not reached all workers.
  if [[ -n $stopping ]]; then deadline='' && request_stop; fi
  watch_workers
  case $code in 0 | 2 | 3 | 4) exit "$code" ;; esac
  [[ -z $stopping ]] || exit "$RESTART"
  ((first == 255 && SECONDS - started < CONNECT_SECONDS)) || unreachable=0
  if ((attempt >= max_restarts)); then
    ((unreachable == 0)) || fail "--hosts: ssh failed in every attempt; check the names of the hosts and your keys"
    echo "a worker ended with code $first and $max_restarts restarts are used up" >&2
    exit "$code"
  fi
  pause=$((2 ** (attempt < 6 ? attempt : 6)))
  echo "a worker ended with code $first; restart $((attempt + 1)) of $max_restarts in $pause s" >&2
  sleep "$pause" &
  wait $! || true
  [[ -z $stopping ]] || exit "$RESTART"
done
