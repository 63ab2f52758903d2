#!/usr/bin/env bash
# Trains on all hosts of a TPU VM slice; goes on for as long as the slice lives. Run it from your own machine.
#     scripts/launch/tpu_vm.sh
# --- edit from here ---
TPU=my-tpu
PROJECT=my-project
ZONE=us-central2-b
CHECKOUT=bltjax # on every host, installed with its extra [tpu]
CORPUS=/mnt/data/corpora/mine # a bucket or disk that all hosts mount, like RUN
RUN=/mnt/data/runs/blt-1b
ARGUMENTS=(--preset blt-1b --steps 100000 --rows.batch 64 --mesh.data -1 --model.compute.dtype bfloat16)
# --- to here ---
set -euo pipefail
command="cd $CHECKOUT && python3 scripts/train.py --distributed --corpus $CORPUS --out $RUN --grace-seconds 25"
until gcloud compute tpus tpu-vm ssh "$TPU" --project "$PROJECT" --zone "$ZONE" --worker=all \
    --command "$command ${ARGUMENTS[*]}"; do
    echo "ended badly: once more in 30 s, from the last checkpoint (Ctrl-C to leave it)" >&2
    sleep 30
done
