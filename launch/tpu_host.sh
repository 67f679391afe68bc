#!/usr/bin/env bash
# What launch/tpu_pod.sh runs on every host: mounts the shared folder, installs, trains.
#
#   launch/tpu_host.sh SHARE [SIZE] [FLAGS]
set -euo pipefail

share="${1:?usage: launch/tpu_host.sh SHARE [SIZE] [FLAGS]}"
if ! mountpoint -q /mnt/loong; then
  sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common
  sudo mkdir -p /mnt/loong
  sudo mount -t nfs "$share" /mnt/loong
fi
python3 -m pip install --quiet --user uv # the image's own Python is older than 3.11
export PATH="$HOME/.local/bin:$PATH"
uv venv --quiet --allow-existing --python=3.12 ../venv
# shellcheck disable=SC1091
source ../venv/bin/activate
uv pip install --quiet -e ".[tpu,eval]"
exec launch/recipe.sh /mnt/loong/videos /mnt/loong/runs "${@:2}"
