#!/usr/bin/env bash
# The trainings of the whole recipe, in turn: tokenizer (single frames, then clips) and the three stages.
#
#   launch/recipe.sh VIDEOS RUNS [SIZE] [FLAGS]
#
# VIDEOS: a folder of videos with captions. RUNS: where workdirs go. SIZE: 700m (default), 3b, 7b; small, for a CPU; or
# debug. FLAGS: of the stages, as --config.choose_mesh=True; those of the tokenizer's two trainings are words in
# TOKENIZER_FLAGS, as TOKENIZER_FLAGS="--config.train.batch_size=64". All are looked at before the first training. With
# SAMPLE=yes a video is sampled at the end. On every host of a cluster the same command makes all of them one training,
# with both folders seen by all. What is finished is not done again: the same command goes on. SIGTERM and Ctrl-C reach
# the training once, which saves and ends with code 75, and so does this. The tokenizer's perceptual loss needs
# pip install -e ".[eval]".
set -euo pipefail
set -m # a training is a process group of its own: a signal for all of this one's reaches it through here alone

usage="usage: launch/recipe.sh VIDEOS RUNS [SIZE] [FLAGS]"
videos="${1:?$usage}"
runs="${2:?$usage}"
size="${3:-700m}"
flags=("${@:4}")
small=""
case "$size" in
  700m | 3b | 7b) ;;
  small | debug) small="$size" ;;
  *) echo "error: SIZE $size is none of 700m, 3b, 7b, small and debug: $usage" >&2; exit 2 ;;
esac
read -r -a tokenizer_flags <<< "${TOKENIZER_FLAGS:-}"

job="" asked=""
trap 'asked=yes; [[ -z "$job" ]] || kill -TERM "$job" 2>/dev/null || true' TERM INT

run() { # NAME CONFIG [flags]: one job with its workdir
  local name="$1" config="$2" code=0
  shift 2
  echo "== $name"
  python -m loong_jax.main --config="configs/$config" --workdir="$runs/$name" "$@" &
  job=$!
  [[ -z "$asked" ]] || kill -TERM "$job" # a signal came between two jobs
  wait "$job" || code=$?
  while [[ -n "$asked" ]]; do # the wait was interrupted, and the training is still saving
    asked="" code=0
    wait "$job" || code=$?
  done
  job=""
  ((code == 0)) || exit "$code"
}
check() { # NAME CONFIG [flags]: whether these are settings of the job; it is not run
  python -m loong_jax.main --config="configs/$2" "${@:3}" --only_check_args
}
all() { # run or check
  local data=(--config.data.source="folder:$videos") stage
  local tokenizer=("${data[@]}" ${tokenizer_flags[@]+"${tokenizer_flags[@]}"})
  "$1" image_tokenizer "tokenizer.py:image${small:+,$small}" "${tokenizer[@]}"
  "$1" tokenizer "tokenizer.py${small:+:$small}" "${tokenizer[@]}" --config.init_from=../image_tokenizer
  for stage in stage1 stage2 stage3; do
    "$1" "$stage" "$stage.py:$size" "${data[@]}" ${flags[@]+"${flags[@]}"}
  done
}

all check
all run
[[ -z "${SAMPLE:-}" ]] || run sample sample.py --config.model_path=../stage3
