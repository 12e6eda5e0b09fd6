#!/usr/bin/env bash
# Builds both containers from their Dockerfiles and uses each as a user would: `make containers`.
#
# Debian's Python 3.11 replaces the base images, so no image registry is needed. Needs root, debootstrap and buildah
# (apt-get install debootstrap buildah), the package index, and 20 GB of disk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly WORK=${1:?usage: build_containers.sh FOLDER}
readonly BASE=localhost/python:3.11-slim
export BUILDAH_ISOLATION=chroot
# shellcheck disable=SC2016  # apt-get expands the variable
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: bookworm" "Component: main" | sed -n 1p)
certificates=/etc/ssl/certs/ca-certificates.crt
mkdir -p "$WORK/runs"

if ! buildah inspect --type image "$BASE" > /dev/null 2>&1; then
  [[ -d $WORK/root ]] ||
    debootstrap --variant=minbase --include=python3,python3-pip,ca-certificates bookworm "$WORK/root" "$mirror"
  # As in the images that it replaces: `python` exists, and pip may install packages.
  rm -f "$WORK"/root/usr/lib/python3*/EXTERNALLY-MANAGED
  ln -sf python3 "$WORK/root/usr/bin/python"
  container=$(buildah from scratch)
  cp -a "$WORK/root/." "$(buildah mount "$container")/"
  buildah umount "$container" > /dev/null
  buildah commit --quiet --rm "$container" "$BASE"
fi

# build NAME BUILD-ARGUMENT...
build() {
  local name=$1
  shift
  buildah bud --pull-never --volume "$certificates:$certificates:ro" "$@" -f "launch/$name/Dockerfile" -t "ssd-$name" .
}

# use NAME USER COMMAND...
use() {
  local container code=0
  container=$(buildah from --pull-never "localhost/ssd-$1")
  buildah run --user "$2" --volume "$WORK/runs:/runs" "$container" -- "${@:3}" || code=$?
  buildah rm "$container" > /dev/null
  return $code
}

build prepare --build-arg "BEAM_SDK=$BASE"
build train
# The generated dataset is a package of the trainer's image; Beam is in the other one.
chmod 777 "$WORK/runs"
rm -rf "$WORK"/runs/*
use train trainer python -m toyset.sample --output=/runs/raw --train=32 --val=8
use prepare root python -m pipelines.prepare --input=/runs/raw --output=/runs/data --set model.input_size=96
use train trainer launch/train_multinode.sh --local=1 -- --config=base --model_dir=/runs/run --set data.dir=/runs/data \
  --set model.input_size=96 --set backbone.weights=none --set train.steps=2 --set train.global_batch_size=8
test -s "$WORK/runs/run/best/best.json"
echo "both containers work"
