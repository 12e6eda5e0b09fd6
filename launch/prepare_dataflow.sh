#!/usr/bin/env bash
# Runs prepare on Dataflow with suitable options. Arguments after -- are passed to prepare unchanged and take precedence.
#
#   launch/prepare_dataflow.sh --project=P --region=R --bucket=gs://B --image=IMAGE [--workers=N] [--python=PYTHON] -- \
#       --input=gs://B/raw --output=gs://B/prepared --config=configs/x.yaml
#
# IMAGE is the worker container; build launch/prepare/Dockerfile and push it first.
# To list the steps without running them: ... -- PREPARE FLAGS --dry_run=True. This reads the layout of the input, from
# the bucket or, with local paths, without cloud access.
set -euo pipefail

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

project="" region="" bucket="" image="" workers=20
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
while [[ $# -gt 0 ]]; do
  case "$1" in
    --project=*) project="${1#*=}" ;;
    --region=*) region="${1#*=}" ;;
    --bucket=*) bucket="${1#*=}" ;;
    --image=*) image="${1#*=}" ;;
    --workers=*) workers="${1#*=}" ;;
    --python=*) python="${1#*=}" ;;
    --) shift; break ;;
    *) echo "error: unknown argument $1; flags of prepare follow --" >&2; usage ;;
  esac
  shift
done
for name in project region bucket image; do
  [[ -n "${!name}" ]] || { echo "error: --$name is missing; give --$name=VALUE" >&2; usage; }
done
[[ $# -gt 0 ]] || { echo "error: the flags of prepare are missing; give them after --" >&2; usage; }

# Four cores run four Python processes, each under 1 GiB; highcpu machines have 1 GB per core, which is too little.
# Only metadata is shuffled and shards are written directly to the bucket, so the disk holds little but the container.
# Two threads per process hide the latency that read-ahead does not; more would only keep more shards in memory.
# The working directory is not changed, so that relative paths keep their meaning.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m pipelines.prepare \
  --runner=DataflowRunner \
  --project="$project" \
  --region="$region" \
  --temp_location="${bucket%/}/dataflow/tmp" \
  --staging_location="${bucket%/}/dataflow/staging" \
  --sdk_container_image="$image" \
  --sdk_location=container \
  --job_name="ssd-prepare-$(date -u +%Y%m%d-%H%M%S)" \
  --autoscaling_algorithm=THROUGHPUT_BASED \
  --max_num_workers="$workers" \
  --worker_machine_type=n2-standard-4 \
  --disk_size_gb=30 \
  --number_of_worker_harness_threads=2 \
  "$@"
