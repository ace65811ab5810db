#!/usr/bin/env bash
# Runs the program's CUDA side at full size without a card: the recording driver counts
# what a card would be told, and this fails where a limit is broken, a block takes too
# many launches or the host waits within a step.
#
#   tools/gpu/dry_run.sh PROGRAM [quick]
#
# PROGRAM: a build with feature `cuda`. With `quick`, 4 of the 60 blocks, and 2 of the
# text encoder's layers. Prints the launch table of tools/gpu/README.md.
set -uo pipefail
program=${1:?usage: $0 PROGRAM [quick]}
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
blocks=60 layers=()
if [ "${2:-}" = quick ]; then
  blocks=4 layers=(--layers 4 --text-layers 2 --vision-layers 2)
fi
steps=2 failed=0

"$here/recording_driver/build.sh" "$folder" && "$here/recording_driver/tests/run.sh" "$folder" || exit 1
export CUDA_LIB_DIR=$folder RECORDING_DRIVER_REPORT=$folder/report

echo "| what | launches a block and branch | a step | uploads a step | allocations a step | GiB allocated a step | GiB at most in a step | in all |"
echo "|---|---|---|---|---|---|---|---|"
bench() { # LABEL [READER'S ARGUMENTS] -- ARGUMENTS...
  local label=$1 reader=()
  shift
  while [ "$1" != -- ]; do reader+=("$1"); shift; done
  shift
  if ! timeout 300 "$program" bench --device cuda --steps $steps --repeats 1 --skip-ceiling "${layers[@]}" "$@" > "$folder/out" 2>&1; then
    echo "$label: the program failed" >&2
    tail -n 5 "$folder/out" >&2
    failed=1
  fi
  python3 "$here/dry_run.py" "$RECORDING_DRIVER_REPORT" $steps $blocks --label "$label" "${reader[@]}" || failed=1
}

# Every kernel at odd sizes. Its numbers are wrong, since nothing computes; its launches
# must not be.
"$program" bench --kernels --device cuda > "$folder/out" 2>&1
if grep '"fault"' "$RECORDING_DRIVER_REPORT" >&2; then
  echo "kernels: the driver saw faults" >&2
  failed=1
fi
# A picture with every block uploaded beside the work on the one before it, on a thread
# of the server that ends: order, leaks.
DIFFUSER_MODEL_ID=tiny-random DIFFUSER_DEVICE=cuda DIFFUSER_TORCH_DTYPE=float32 DIFFUSER_MEMORY=stream \
  DIFFUSER_ENABLE_WARMUP=true DIFFUSER_CONFIG= timeout 120 "$program" --host 127.0.0.1 --port 0 > "$folder/out" 2>&1 &
server=$!
for _ in $(seq 100); do
  grep -q listening "$folder/out" && break
  sleep 0.3
done
kill -TERM $server 2> /dev/null
wait $server || { echo "streamed uploads: the server failed" >&2; tail -n 5 "$folder/out" >&2; failed=1; }
if grep '"fault"' "$RECORDING_DRIVER_REPORT" >&2 || ! grep -q '"for an event"' "$RECORDING_DRIVER_REPORT"; then
  echo "streamed uploads: the driver saw faults, or no upload" >&2
  failed=1
fi
bf16=(--dtype bfloat16)
bench "Edit, bfloat16" --stages -- "${bf16[@]}" --model qwen-image-edit
bench "Edit, fp8" --bound 50 -- --dtype fp8 --model qwen-image-edit
bench "Edit-2511, bfloat16" -- "${bf16[@]}" --model qwen-image-edit-2511
bench "Edit-2511, two references" --bound 50 -- "${bf16[@]}" --model qwen-image-edit-2511 --references 2
bench "Edit-2511, two references, fp8" --bound 60 -- --dtype fp8 --model qwen-image-edit-2511 --references 2
bench "Edit, offloaded" -- "${bf16[@]}" --model qwen-image-edit --memory offload
bench "Edit, streamed" --streams --bound 80 -- "${bf16[@]}" --model qwen-image-edit --memory stream
exit $failed
