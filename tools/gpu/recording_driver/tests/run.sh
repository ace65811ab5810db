#!/usr/bin/env bash
# Has the recording driver see every kind of fault.   tests/run.sh FOLDER
set -euo pipefail
folder=$(cd "${1:?usage: $0 FOLDER, where build.sh has built}" && pwd)
cc -std=gnu11 -O1 -Wall -Wextra -Werror -o "$folder/faults" "$(dirname "$0")/faults.c" \
  "$folder/librecording.so" "-Wl,-rpath,$folder"
"$folder/faults"
