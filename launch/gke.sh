#!/usr/bin/env bash
# The trainings of the recipe on TPU slices of a GKE cluster, as a JobSet that xpk makes of this checkout.
#
#   launch/gke.sh CLUSTER PROJECT ZONE TYPE STORAGE [SIZE] [FLAGS]
#   SLICES=2 launch/gke.sh my-cluster my-project us-east5-b v6e-64 loong 7b --config.choose_mesh=True
#
# Run it in the folder of the checkout, with xpk (pip install xpk) and Docker. CLUSTER: made by xpk cluster create. STORAGE:
# a shared folder with videos/ in it that xpk mounts at /mnt/loong, and that gets runs/:
#   xpk storage create loong --type=gcpfilestore --mount-point=/mnt/loong --size=2560 --tier=BASIC_SSD \
#     --access_mode=ReadWriteMany --vol=default --auto-mount=false --readonly=false --cluster=CLUSTER ...
# SIZE, FLAGS and TOKENIZER_FLAGS are those of launch/recipe.sh. Where nodes are taken away, the training saves, and the
# JobSet starts again and goes on, RESTARTS=1000 times; what is wrong with a setting or the data (code 2) ends it.
# WORKLOAD=loong names it.
set -euo pipefail

usage="usage: launch/gke.sh CLUSTER PROJECT ZONE TYPE STORAGE [SIZE] [FLAGS]"
cluster="${1:?$usage}" project="${2:?$usage}" zone="${3:?$usage}" type="${4:?$usage}" storage="${5:?$usage}"
command="python3 -m pip install --quiet -e '.[tpu,eval]' &&$(printf ' %q' \
  exec env "TOKENIZER_FLAGS=${TOKENIZER_FLAGS:-}" launch/recipe.sh /mnt/loong/videos /mnt/loong/runs "${@:6}")"

exec xpk workload create --workload="${WORKLOAD:-loong}" --cluster="$cluster" --project="$project" --zone="$zone" \
  --tpu-type="$type" --num-slices="${SLICES:-1}" --storage="$storage" \
  --base-docker-image=python:3.12 --script-dir=. --command="$command" \
  --max-restarts="${RESTARTS:-1000}" --restart-on-exit-codes=4,75 --termination-grace-period-seconds=600
