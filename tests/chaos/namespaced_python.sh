#!/usr/bin/env bash
# Used by the launcher as its Python interpreter: runs each worker in the network namespace of its index in TF_CONFIG.
set -eu
if [[ -z ${TF_CONFIG:-} ]]; then exec "$CHAOS_PYTHON" "$@"; fi
read -r -a namespaces <<<"$CHAOS_NAMESPACES"
index=${TF_CONFIG##*\"index\": }
TF_CONFIG=${TF_CONFIG/127.0.0.1/10.213.0.1}
TF_CONFIG=${TF_CONFIG/127.0.0.1/10.213.0.2}
export TF_CONFIG
exec ip netns exec "${namespaces[${index%%\}*}]}" "$CHAOS_PYTHON" "$@"
