#!/usr/bin/env bash
# The service, alone and with the drop-in for cards, as systemd reads it.
set -euo pipefail
here=$(cd "$(dirname "$0")/../systemd" && pwd)
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

verify() {
  # Whatever it says is a fault: of an unknown word it warns and goes on.
  local said
  said=$(SYSTEMD_UNIT_PATH="$folder:" systemd-analyze verify "$folder/diffuser-api.service" 2>&1) || true
  [ -z "$said" ] || { echo "$said" >&2; exit 1; }
}

# The program is not installed here.
sed 's|^ExecStart=.*|ExecStart=/bin/true|' "$here/diffuser-api.service" > "$folder/diffuser-api.service"
verify
mkdir "$folder/diffuser-api.service.d"
cp "$here/cuda.conf" "$folder/diffuser-api.service.d/"
verify

# Of ten: what a service that is taken over could still do. Older systemd cannot tell offline.
if systemd-analyze security --help | grep -- --offline > /dev/null; then
  systemd-analyze security --offline=true --threshold=20 "$here/diffuser-api.service" | tail -n 1
fi

value() { grep -hoP "^$1=\K[0-9]+" "$here/$2"; }
stop=$(value TimeoutStopSec diffuser-api.service) grace=$(value DIFFUSER_GRACE_S diffuser-api.env)
[ "$stop" -ge $((grace + 10)) ] || { echo "TimeoutStopSec: the program may take $grace s" >&2; exit 1; }
