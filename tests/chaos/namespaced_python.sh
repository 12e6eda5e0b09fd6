#!/usr/bin/env bash
# The interpreter that the launcher is given: a worker, known by its TF_CONFIG, runs in the namespace of its index.
set -eu
if [[ -z ${TF_CONFIG:-} ]]; then exec "$CHAOS_PYTHON" "$@"; fi
read -r -a namespaces <<<"$CHAOS_NAMESPACES"
index=${TF_CONFIG##*\"index\": }
TF_CONFIG=${TF_CONFIG/127.0.0.1/10.213.0.1}
TF_CONFIG=${TF_CONFIG/127.0.0.1/10.213.0.2}
export TF_CONFIG
exec ip netns exec "${namespaces[${index%%\}*}]}" "$CHAOS_PYTHON" "$@"
