#!/usr/bin/env bash
# Packs a program for a machine with a card: one file that unpacks itself, and if wanted
# the Python packages that diffusers_bench.py needs there. Checks that all of it, with
# the tree, is as small as it must be.
#
#   tools/gpu/pack.sh [--wheels] [PROGRAM] [FOLDER]
#
# PROGRAM: target/release/diffuser-api, built with feature `flash-attn`. FOLDER:
# target/packed. Then, with this tree and FOLDER on the machine with the card:
# tools/gpu/run.sh FOLDER/diffuser-api.run
#
# Limits, in MiB:    LIMIT_MIB (64)       all that travels
#                    TRAVELS (the tree)   folders that travel, with spaces between
set -euo pipefail
: "${LIMIT_MIB:=64}" "${DIFFUSERS:=0.42.1}" "${IMPORTLIB_METADATA:=8.7.0}"
wheels=no arguments=()
for argument in "$@"; do
  case $argument in
    --wheels) wheels=yes ;;
    -*) echo "usage: $0 [--wheels] [PROGRAM] [FOLDER]" >&2; exit 2 ;;
    *) arguments+=("$argument") ;;
  esac
done
here=$(cd "$(dirname "$0")/../.." && pwd)
program=${arguments[0]:-$here/target/release/diffuser-api}
folder=${arguments[1]:-$here/target/packed}
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

cp "$program" "$work/diffuser-api"
strip "$work/diffuser-api" 2>/dev/null || true # no program of this machine's kind: as it is
hash=$(sha256sum "$work/diffuser-api" | cut -d ' ' -f 1)
xz -9e -T1 -k "$work/diffuser-api"

# Unpacked once, beside where it will be, and moved there whole: two that start at the
# same time do not see half a program.
sed "s/HASH/$hash/" > "$work/packed" <<'END'
#!/bin/sh
# A packed program: it unpacks itself, then runs. With --unpack [FOLDER] it prints where it is.
set -eu
hash=HASH
folder=${TMPDIR:-/tmp}/diffuser-api-$hash
[ "${1:-}" != --unpack ] || folder=${2:-$folder}
program=$folder/diffuser-api
if [ ! -x "$program" ]; then
  mkdir -p "$folder"
  part=$program.$$
  lines=$(awk '/^# the program follows$/ { print NR; exit }' "$0")
  if command -v xz >/dev/null; then
    tail -n +$((lines + 1)) "$0" | xz -dc > "$part" || true # its hash tells
  else
    tail -n +$((lines + 1)) "$0" |
      python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.stdin.buffer), sys.stdout.buffer)' > "$part" || true
  fi
  if [ "$(sha256sum "$part" | cut -d ' ' -f 1)" != "$hash" ]; then
    rm "$part"
    echo "$0 is damaged" >&2
    exit 1
  fi
  chmod +x "$part"
  mv "$part" "$program"
fi
if [ "${1:-}" = --unpack ]; then
  echo "$program"
  exit
fi
exec "$program" "$@"
# the program follows
END
cat "$work/packed" "$work/diffuser-api.xz" > "$folder/diffuser-api.run"
chmod +x "$folder/diffuser-api.run"

if [ $wheels = yes ]; then
  rm -rf "$folder/wheels"
  # What PyTorch's and transformers' users have anyway is not among them.
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$folder/wheels" "diffusers==$DIFFUSERS" "importlib_metadata==$IMPORTLIB_METADATA"
fi

# Unpacks in an empty folder, or it is not sent.
unpacked=$(sh "$folder/diffuser-api.run" --unpack "$work/empty")
cmp "$work/diffuser-api" "$unpacked"

mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f", bytes / 1048576 }'; }
size_of() { stat -c %s "$1"; }
bytes_in() { find "$1" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'; }
# The tree: what git knows, and what it would know; of a copy without git, all but what is built.
if git -C "$here" rev-parse >/dev/null 2>&1; then
  files() { (cd "$here" && git ls-files -z --cached --others --exclude-standard); }
else
  files() { (cd "$here" && find . \( -name target -o -name .cuda \) -prune -o -type f -print0); }
fi
tree=$(files | (cd "$here" && xargs -0 stat -c %s 2>/dev/null) | awk '{ sum += $1 } END { print sum + 0 }')
for travelling in ${TRAVELS:-}; do tree=$((tree + $(bytes_in "$travelling"))); done
packed=$(bytes_in "$folder")
printf 'program %s MiB, stripped %s, packed %s; wheels %s\n' "$(mib "$(size_of "$program")")" \
  "$(mib "$(size_of "$work/diffuser-api")")" "$(mib "$(size_of "$folder/diffuser-api.run")")" \
  "$(mib $((packed - $(size_of "$folder/diffuser-api.run"))))"
printf 'in all %s MiB with a tree of %s; at most %s\n' "$(mib $((tree + packed)))" "$(mib "$tree")" "$LIMIT_MIB"
if [ $((tree + packed)) -gt $((LIMIT_MIB * 1048576)) ]; then
  echo "that is too much" >&2
  exit 1
fi
