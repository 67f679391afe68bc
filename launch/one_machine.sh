#!/usr/bin/env bash
# The whole recipe on one machine: tokenizer, three stages, a sample. All of its GPUs or TPU chips are used.
#
#   launch/one_machine.sh VIDEOS RUNS [SIZE] [FLAGS]
#   TOKENIZER_FLAGS=--config.train.batch_size=32 launch/one_machine.sh videos runs 700m --config.accumulate=2
#
# Arguments are those of launch/recipe.sh, and the same command goes on where it was stopped. The second is for 8 v6e: what
# fits where is in launch/README.md.
set -euo pipefail

(($# >= 2)) || { echo "usage: launch/one_machine.sh VIDEOS RUNS [SIZE] [FLAGS]" >&2; exit 2; }
SAMPLE=yes exec launch/recipe.sh "$@"
