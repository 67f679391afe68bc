#!/usr/bin/env bash
# The trainings of the recipe on a Cloud TPU slice, or on several slices as one: asks for the chips, installs this
# checkout's commit on every host, trains, and where Spot chips are taken away asks for others and goes on.
#
#   launch/tpu_pod.sh NAME ZONE TYPE SHARE [SIZE] [FLAGS]
#   launch/tpu_pod.sh loong us-east5-b v6e-64 10.0.0.2:/share 7b --config.choose_mesh=True
#   SLICES=4 TOKENIZER_FLAGS=--config.mesh.data=4 \
#     launch/tpu_pod.sh loong us-east5-b v6e-64 10.0.0.2:/share 7b --config.choose_mesh=True
#
# TYPE: v5litepod-N (v5e) or v6e-N, of N chips, or v5p-N, of N cores, two a chip. SHARE: an NFS folder in the same
# network, as of Filestore, that holds videos/ and gets runs/. SIZE, FLAGS and TOKENIZER_FLAGS are those of
# launch/recipe.sh. SPOT=no asks for chips that stay. It runs for as long as the training, so start it in tmux; at its
# end the chips are given back, and after an error they stay until you say
# gcloud compute tpus queued-resources delete NAME --zone=ZONE --force
set -euo pipefail

usage="usage: launch/tpu_pod.sh NAME ZONE TYPE SHARE [SIZE] [FLAGS]"
name="${1:?$usage}" zone="${2:?$usage}" type="${3:?$usage}" share="${4:?$usage}"
slices="${SLICES:-1}" pause="${PAUSE:-30}" # seconds between looks
case "$type" in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) echo "error: TYPE $type is none of v5litepod-N, v5p-N and v6e-N" >&2; exit 2 ;;
esac

shape=(--node-id="$name") nodes=("$name")
if ((slices > 1)); then
  shape=(--node-prefix="$name" --node-count="$slices") nodes=()
  for ((slice = 0; slice < slices; slice++)); do nodes+=("$name-$slice"); done
fi
[[ "${SPOT:-yes}" == no ]] || shape+=(--spot)

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
archive="$scratch/loong_jax.tgz"
git archive --format=tar.gz --output="$archive" HEAD
command="rm -rf loong_jax && mkdir loong_jax && tar xzf loong_jax.tgz -C loong_jax && cd loong_jax &&$(printf ' %q' \
  exec env "TOKENIZER_FLAGS=${TOKENIZER_FLAGS:-}" launch/tpu_host.sh "$share" "${@:5}")"

queue() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }
look() { # sets state, ABSENT where there are no such chips; a look that fails otherwise says nothing of them
  until state="$(queue describe --format="value(state.state)" 2>"$scratch/error")"; do
    if grep -q NOT_FOUND "$scratch/error"; then
      state=ABSENT
      return
    fi
    echo "== cannot look, trying again: $(tail -n 1 "$scratch/error")" >&2
    sleep "$pause"
  done
}
on_all() { # FUNCTION: with every slice at once; fails where it fails for one
  local jobs=() code=0 node
  for node in "${nodes[@]}"; do "$1" "$node" & jobs+=($!); done
  for job in "${jobs[@]}"; do wait "$job" || code=$?; done
  return "$code"
}
send() { gcloud compute tpus tpu-vm scp "$archive" "$1:loong_jax.tgz" --zone="$zone" --worker=all; }
train() { gcloud compute tpus tpu-vm ssh "$1" --zone="$zone" --worker=all --command="$command"; }

while :; do
  look
  echo "== $state"
  case "$state" in
    ABSENT) queue create --accelerator-type="$type" --runtime-version="$runtime" "${shape[@]}" ;;
    FAILED | SUSPENDED) queue delete --force --quiet ;;
    ACTIVE)
      code=0
      { on_all send && on_all train; } || code=$?
      if ((code == 0)); then
        queue delete --force --quiet
        exit 0
      fi
      sleep "$pause" # in which chips that were taken away are known to be
      look
      if [[ "$state" == ACTIVE ]]; then
        echo "error: the training ended with code $code, and the chips are there: see above, and start the same again" >&2
        exit "$code"
      fi
      ;;
    *) sleep "$pause" ;;
  esac
done
