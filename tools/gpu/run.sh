#!/usr/bin/env bash
# On a machine with an NVIDIA card: checks, then times, each in a process of its own.
#
#   tools/gpu/run.sh PROGRAM                                  # under eight minutes
#   tools/gpu/run.sh PROGRAM --plan second --since FILE       # four: what failed, then diffusers
#
# PROGRAM: a build with feature `cuda` or `flash-attn`, or what pack.sh made of one.
# FILE: results.json of the first call. Further flags: flight.py. Results are written to
# the folder $OUT as they come; flight.py says which. Never run on a card so far.
set -euo pipefail
program=${1:?usage: $0 PROGRAM [FLAGS]}
shift
here=$(cd "$(dirname "$0")" && pwd)

# What checks memory must be given the program itself, not what unpacks it.
wheels=$(dirname "$program")/wheels
if [ "$(head -c 2 "$program")" = '#!' ] && grep -aqm1 '^# A packed program' "$program"; then
  program=$(sh "$program" --unpack)
fi

# Where PyTorch's wheels put CUDA's libraries, if there is a Python that has them.
if folder=$(timeout 20 python3 -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null); then
  export CUDA_LIB_DIR=$folder/cu13/lib:$folder/cudnn/lib${CUDA_LIB_DIR:+:$CUDA_LIB_DIR}
fi

# Packages of Python that travelled with the program.
if ls "$wheels"/*.whl >/dev/null 2>&1; then
  site=$(mktemp -d)
  for wheel in "$wheels"/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi

export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
exec python3 "$here/flight.py" "$program" "$@"
