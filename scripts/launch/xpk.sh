#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, through xpk (https://github.com/AI-Hypercomputer/xpk).
#     scripts/launch/xpk.sh
# --- edit from here ---
CLUSTER=my-cluster
PROJECT=my-project
ZONE=us-east5-a
TPU=v5p-256 # 128 chips
SLICES=1
IMAGE=us-docker.pkg.dev/my-project/images/bltjax:latest # has this checkout in /bltjax, installed with its extra [tpu]
CORPUS=/mnt/data/corpora/mine # a bucket or Filestore that the cluster mounts, like RUN
RUN=/mnt/data/runs/blt-8b
ARGUMENTS=(--preset blt-8b --steps 100000 --rows.batch 128 --mesh.data -1 --model.compute.dtype bfloat16)
# --- to here ---
set -euo pipefail
command="cd /bltjax && python scripts/train.py --distributed --corpus $CORPUS --out $RUN --grace-seconds 25"
# Pods get SIGTERM 30 s before they are taken away; a restarted workload goes on from the last checkpoint.
xpk workload create --workload "bltjax-$(basename "$RUN")" --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" \
    --tpu-type "$TPU" --num-slices "$SLICES" --docker-image "$IMAGE" --max-restarts 1000 --restart-on-user-code-failure \
    --command "$command ${ARGUMENTS[*]}"
