#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, through xpk, one of 2025 or newer (https://github.com/AI-Hypercomputer/xpk).
#     scripts/launch/xpk.sh
# --- edit from here ---
CLUSTER=my-cluster
PROJECT=my-project
ZONE=us-east5-a
TPU=v5p-256 # 128 chips
SLICES=1
IMAGE=us-docker.pkg.dev/my-project/images/bltjax:latest # has this checkout in /bltjax, installed with its extra [tpu]
CORPUS=/mnt/data/corpora/mine # in a storage that was attached with `xpk storage attach --auto-mount=true`, like RUN
RUN=/mnt/data/runs/blt-8b
ARGUMENTS=(--preset blt-8b --steps 100000 --rows.batch 128 --mesh.data -1 --model.compute.dtype bfloat16)
CRASHES=1000 # after so many restarts the workload ends
# --- to here ---
set -euo pipefail
# xpk sends SIGTERM to the command itself: without exec a shell would get it, and Python would be killed unsaved.
command="cd /bltjax && exec python scripts/train.py --distributed --corpus $CORPUS --out $RUN --grace-seconds 25"
# Status 75 is a stop with its state saved; after signals (127 to 255) xpk starts anew in any case, after errors never.
xpk workload create --workload "bltjax-$(basename "$RUN")" --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" \
    --tpu-type "$TPU" --num-slices "$SLICES" --docker-image "$IMAGE" --termination-grace-period-seconds 30 \
    --max-restarts "$CRASHES" --restart-on-exit-codes 75 --command "$command ${ARGUMENTS[*]}"
