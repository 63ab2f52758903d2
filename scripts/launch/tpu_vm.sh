#!/usr/bin/env bash
# Trains on all hosts of a TPU VM slice, through stops and crashes. Run it from your own machine; Ctrl-C leaves it.
#     scripts/launch/tpu_vm.sh
# --- edit from here ---
TPU=my-tpu
PROJECT=my-project
ZONE=us-central2-b
CHECKOUT=bltjax # on every host, installed with its extra [tpu]
CORPUS=/mnt/data/corpora/mine # a bucket or disk that all hosts mount, like RUN
RUN=/mnt/data/runs/blt-1b
ARGUMENTS=(--preset blt-1b --steps 100000 --rows.batch 64 --mesh.data -1 --model.compute.dtype bfloat16)
CRASHES=20 # after so many it is not started again
# --- to here ---
set -euo pipefail
command="cd $CHECKOUT && exec python3 scripts/train.py --distributed --corpus $CORPUS --out $RUN --grace-seconds 25"
crashes=0
while true; do
    status=0
    gcloud compute tpus tpu-vm ssh "$TPU" --project "$PROJECT" --zone "$ZONE" --worker=all \
        --command "$command ${ARGUMENTS[*]}" || status=$?
    case $status in
    0) exit 0 ;;
    1 | 2)
        echo "not started again: what is wrong is said above (status $status)" >&2
        exit "$status"
        ;;
    75) echo "stopped, with its state saved: goes on in 30 s" >&2 ;;
    *) # a signal, an unexpected error, or 255: gcloud lost a host
        crashes=$((crashes + 1))
        if [ "$crashes" -gt "$CRASHES" ]; then
            echo "not started again: $crashes crashes, the last with status $status" >&2
            exit "$status"
        fi
        echo "crash $crashes of at most $CRASHES, status $status: goes on from the last checkpoint in 30 s" >&2
        ;;
    esac
    sleep 30
done
