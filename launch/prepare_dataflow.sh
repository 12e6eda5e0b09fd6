#!/usr/bin/env bash
# Runs prepare on Dataflow with options that suit it; whatever follows -- goes to prepare as it is, and wins.
#
#   launch/prepare_dataflow.sh --project=P --region=R --bucket=gs://B --image=IMAGE [--workers=N] [--python=PYTHON] -- \
#       --input_format=voc --input=gs://B/raw --split=train --output=gs://B/prepared --config=configs/x.yaml
#
# IMAGE is the worker container: launch/prepare/Dockerfile, built and pushed by you.
# Look at the job first: ... -- PREPARE FLAGS --dry_run=True, which reads the input's layout, so from the bucket or, with
# local paths, without a cloud.
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
    *) echo "error: unknown argument $1" >&2; usage ;;
  esac
  shift
done
for name in project region bucket image; do
  [[ -n "${!name}" ]] || { echo "error: --$name is missing" >&2; usage; }
done
[[ $# -gt 0 ]] || { echo "error: the flags of prepare are missing; give them after --" >&2; usage; }

# Four cores run four Python processes, each under 1 GiB; highcpu has 1 GB a core and would be too tight.
# Only metadata is shuffled and shards go straight to the bucket, so the disk holds the container and little else.
# Two threads a process hide what waiting the reading ahead leaves; more would only hold more shards in memory.
# Paths are the caller's.
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
