#!/usr/bin/env bash
# Trains a named config on a slice of Cloud TPU, asked for as a queued resource.
#
#   PROJECT=my-project ZONE=us-east5-a BUCKET=gs://my-bucket bash launch_files/tpu_queued_resource.sh
#
# DRY_RUN=1 prints the commands. The run folder and the data have to be on storage that all hosts
# share: a bucket mounted with gcsfuse, Filestore, or another NFS.
set -euo pipefail

NAME="${NAME:-mm1-7b}"
CONFIG="${CONFIG:-mm1_7b}"
ACCELERATOR_TYPE="${ACCELERATOR_TYPE:-v5p-128}"
RUNTIME_VERSION="${RUNTIME_VERSION:-v2-alpha-tpuv5}"
REPOSITORY="${REPOSITORY:?the address of your fork, for git clone}"
: "${PROJECT:?}" "${ZONE:?}" "${BUCKET:?}"
MAX_RESTARTS="${MAX_RESTARTS:-50}"
where=(--project="$PROJECT" --zone="$ZONE")

run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" \
  --node-id="$NAME" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" \
  ${SPOT:+--spot}

until [ -n "${DRY_RUN:-}" ] || gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
  --format="value(state.state)" | grep -q ACTIVE; do
  sleep 60
done

on_all_hosts "git clone $REPOSITORY mm1_jax && python3 -m venv venv && venv/bin/pip install -q -e './mm1_jax[tpu]'"
on_all_hosts "sudo mkdir -p /mnt/shared && sudo gcsfuse --implicit-dirs -o allow_other ${BUCKET#gs://} /mnt/shared"
# The hosts find each other by the metadata of the slice. Each restarts its own process.
on_all_hosts "cd mm1_jax && nohup ../venv/bin/python -m mm1_jax.launch --config=$CONFIG \
  --data_dir=/mnt/shared/data --output_dir=/mnt/shared/runs/$NAME \
  --config.trainer.checkpointer.location=$BUCKET/runs/$NAME/checkpoints \
  --config.trainer.watchdog.abort=true --max_restarts=$MAX_RESTARTS > ~/launch.log 2>&1 &"
