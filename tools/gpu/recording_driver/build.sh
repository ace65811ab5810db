#!/usr/bin/env bash
# Builds the recording driver: one library under the names of four of CUDA's.
#
#   tools/gpu/recording_driver/build.sh FOLDER
#   CUDA_LIB_DIR=FOLDER target/debug/diffuser-api bench --device cuda …
set -euo pipefail
folder=${1:?usage: $0 FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
cc -std=gnu11 -O2 -g -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden -pthread \
  -o "$folder/librecording.so" "$here"/*.c
for name in libcuda.so.1 libcublas.so.13 libcublasLt.so.13 libcurand.so.10; do
  ln -sf librecording.so "$folder/$name"
done
