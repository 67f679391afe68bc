#!/usr/bin/env bash
# The whole recipe on one machine: tokenizer, three stages, a sample. All of its GPUs or TPU chips are used.
#
#   launch/one_machine.sh VIDEOS RUNS [SIZE] [FLAGS]
#
# Arguments are those of launch/recipe.sh, and the same command goes on where it was stopped.
set -euo pipefail

runs="${2:?usage: launch/one_machine.sh VIDEOS RUNS [SIZE] [FLAGS]}"
launch/recipe.sh "$@"
echo "== sample"
exec python -m loong_jax.main --config=configs/sample.py --workdir="$runs/sample" --config.model_path=../stage3
