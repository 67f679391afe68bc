#!/usr/bin/env bash
# The whole recipe on one machine: tokenizer (single frames, then clips), three stages, a sample.
#
#   launch/one_machine.sh VIDEOS RUNS [SIZE]
#
# VIDEOS: a folder of videos with captions. RUNS: where workdirs go. SIZE: 700m (default), 3b, 7b, or debug.
# The same command goes on where it was stopped. The tokenizer's perceptual loss needs pip install -e ".[eval]".
set -euo pipefail

videos="${1:?usage: launch/one_machine.sh VIDEOS RUNS [SIZE]}"
runs="${2:?usage: launch/one_machine.sh VIDEOS RUNS [SIZE]}"
size="${3:-700m}"
small=""
[[ "$size" == debug ]] && small="debug"

run() { # NAME CONFIG [flags]: one job with its workdir
  local name="$1" config="$2"
  shift 2
  echo "== $name"
  python -m loong_jax.main --config="configs/$config" --workdir="$runs/$name" "$@"
}
data=(--config.data.source="folder:$videos")

run image_tokenizer "tokenizer.py:image${small:+,$small}" "${data[@]}"
run tokenizer "tokenizer.py${small:+:$small}" "${data[@]}" --config.init_from=../image_tokenizer
run stage1 "stage1.py:$size" "${data[@]}"
run stage2 "stage2.py:$size" "${data[@]}"
run stage3 "stage3.py:$size" "${data[@]}"
run sample sample.py
