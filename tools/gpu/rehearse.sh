#!/usr/bin/env bash
# Rehearses both calls of run.sh without a card: the CPU in its place, tiny models, and a
# program that crashes, hangs, writes without end and is wrong, each in one part. Then the
# first call is killed at a bad moment. What comes back must be whole each time.
#
#   tools/gpu/rehearse.sh [PROGRAM]     # target/debug/diffuser-api; about a minute. Python 3.11, xz
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
real=$(realpath "${1:-$root/target/debug/diffuser-api}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work/tmp
mkdir "$TMPDIR" "$work/bin"

step() { printf '\n==== %s (%s s)\n' "$1" "$SECONDS"; }

# A program with a fault in some parts; otherwise the real one.
cat > "$work/faulty" <<END
#!/bin/sh
case "\$*" in
  *"--family activation --sizes small --json"*) '$real' "\$@"; kill -SEGV \$\$ ;;
  *"--family heads"*) trap '' TERM; '$real' "\$@"; echo hanging; while :; do sleep 1; done ;;
  *"--family norm"*) yes 'more and more' ;;
  *"--family guidance"*) echo 'the device is wrong'; exit 1 ;;
esac
exec '$real' "\$@"
END
chmod +x "$work/faulty"

# Finds the fault that the part before it has shown.
cat > "$work/bin/compute-sanitizer" <<'END'
#!/bin/sh
echo "========= Invalid __global__ write of size 2 bytes"
exit 9
END
chmod +x "$work/bin/compute-sanitizer"
export PATH=$work/bin:$PATH

step "packing, and unpacking in an empty folder"
"$here/pack.sh" "$work/faulty" "$work/packed"
if LIMIT_MIB=1 "$here/pack.sh" "$work/faulty" "$work/too-much" >/dev/null 2>&1; then
  echo "pack.sh lets everything through" >&2
  exit 1
fi
packed=$work/packed/diffuser-api.run
sed 's/^hash=./hash=x/' "$packed" > "$work/damaged"
if sh "$work/damaged" --unpack "$work/elsewhere" 2>/dev/null; then
  echo "a damaged program unpacks" >&2
  exit 1
fi

call=("$here/run.sh" "$packed" --miniature --device cpu --limit 'kernels-heads=4')

step "the first call"
status=0
OUT=$work/first "${call[@]}" --only 'facts,kernels-*,sanitizer-*-now,check-bfloat16,ceiling,blocks,whole-fp8,blocks-without-rms-norm' || status=$?
[ $status = 1 ] || { echo "faults went unnoticed: $status" >&2; exit 1; }

step "the first call, killed while a part hangs"
for number in TERM KILL; do
  out=$work/killed-$number
  (OUT=$out exec "${call[@]}" --only 'kernels-product,kernels-heads,ceiling' --limit 'kernels-heads=100') > "$work/killed.txt" &
  pid=$!
  # The part has written all its numbers, and hangs.
  until grep -qs '^hanging' "$out/log.txt"; do kill -0 $pid; sleep 0.1; done
  kill -$number $pid
  wait $pid || true
done

step "the second call, to which nobody listens for long"
OUT=$work/second "${call[@]}" --plan second --since "$work/first/results.json" --mended ceiling --limit 'diffusers=20' | head -n 1 || true

step "what came back"
python3 "$here/rehearsal.py" "$work" "$here/fill_table.py" "$root/docs/performance.md"
step "done"
