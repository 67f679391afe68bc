#!/usr/bin/env bash
# The whole recipe on one machine with NVIDIA GPUs: installs, looks whether all is well, trains and samples.
#
#   launch/gpu_node.sh VIDEOS RUNS [SIZE] [FLAGS]
#   TOKENIZER_FLAGS=--config.train.batch_size=64 launch/gpu_node.sh videos runs 700m
#
# Run it in the folder of the checkout; arguments are those of launch/recipe.sh, the second are for 8 GPUs of 80 GB. Needs
# Python 3.11 or newer and a driver for CUDA 12. The same command goes on where it was stopped.
set -euo pipefail

runs="${2:?usage: launch/gpu_node.sh VIDEOS RUNS [SIZE] [FLAGS]}"
[[ -d .venv ]] || python3 -m venv .venv
# shellcheck disable=SC1091
source .venv/bin/activate
python -m pip install --quiet -e ".[cuda,eval]"
python -m loong_jax.main --config=configs/doctor.py --workdir="$runs/doctor"
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}" # of a GPU's memory; JAX's own is 0.75
exec launch/one_machine.sh "$@"
