#!/usr/bin/env bash
# First light on a machine with an NVIDIA card: checks, then times. Under ten minutes.
#
#   tools/gpu/run.sh PROGRAM [MODEL]
#
# PROGRAM: a build with feature `cuda` or `flash-attn`. MODEL: what its `bench` takes;
# without one, Qwen-Image-Edit with random weights (60 GB of the card's memory). Never
# run so far.
set -euo pipefail
program=${1:?usage: $0 PROGRAM [MODEL]}
model=(${2:+--model "$2"})
report=${OUT:-.}/gpu-report
mkdir -p "$report"

# Where PyTorch's wheels put CUDA's libraries, if there is a Python that has them.
if folder=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null); then
  export CUDA_LIB_DIR=$folder/cu13/lib:$folder/cudnn/lib${CUDA_LIB_DIR:+:$CUDA_LIB_DIR}
fi

failed=()
step() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 status=0
  shift 2
  printf '\n== %s\n' "$name"
  local start=$SECONDS
  timeout "$limit" "$@" 2>&1 | tee "$report/$name.log" || status=$?
  printf '   %s s, status %s\n' "$((SECONDS - start))" "$status"
  [ "$status" = 0 ] || failed+=("$name")
}

step card 20 nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv
# Every kernel, and attention, against the CPU's numbers.
step kernels 60 "$program" bench --kernels --device cuda
# Whole edits by the embedded models, against the CPU's.
step check 120 "$program" bench --check --device cuda
bench=("$program" bench --device cuda --dtype bfloat16 --steps 3 "${model[@]}")
step fused 120 "${bench[@]}" --json "$report/fused.json"
# What each kind of fusion brings: the same without it.
step fp8 120 "$program" bench --device cuda --dtype fp8 --steps 3 "${model[@]}" --json "$report/fp8.json"
step without-flash 120 "${bench[@]}" --without flash-attention --json "$report/without-flash.json"
step composed 120 "${bench[@]}" --json "$report/composed.json" --without "$(
  echo flash-attention softmax layer-norm-modulation gated-add joint-heads bias-activation gelu-epilogue \
    gated-silu guidance channel-norm rms-norm | tr ' ' ',')"

printf '\nlogs are in %s\n' "$report"
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[*]}"
  exit 1
fi
