#!/usr/bin/env python3
"""Makes the same picture under several memory limits, and prints what was planned beside what was taken.

    python3 tools/full-size/limits.py target/release/diffuser-api /tmp/part 4 8 12 16 20

Each run has `model.memory_limit` and `ulimit -d` at so many GiB: a plan that is wrong fails. Options are those
of run.py. Linux only.
"""

import argparse
import contextlib
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time

import run

GIB = run.GIB


def planned(args, limit):
    """What the program would take, in bytes."""
    command = [args.program, "plan", args.checkpoint, "--json", "--device", "cpu", "--dtype", args.dtype]
    command += ["--memory-limit", str(limit), "--size", f"{math.isqrt(args.area)}x{math.isqrt(args.area)}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def measured(args, limit):
    """Bytes by kind, seconds, and a hash of the picture."""
    args.set = [f"DIFFUSER_MEMORY_LIMIT={limit}"]
    args.data_limit = limit / GIB
    with tempfile.TemporaryFile("w+") as log, run.serving(args, log) as (port, most):
        started = time.monotonic()
        reply = run.edit(port, args)
        seconds = time.monotonic() - started
        return most, seconds, hashlib.sha256(reply["data"][0]["b64_json"].encode()).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("checkpoint")
    parser.add_argument("limits", type=float, nargs="+", help="GiB")
    parser.add_argument("--area", type=int, default=65536)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    print("| limit | weights that stay, planned | in all, planned | anonymous, measured | mapped files | seconds | picture |")
    print("|---|---|---|---|---|---|---|")
    for limit in args.limits:
        limit = int(limit * GIB)
        plan = planned(args, limit)
        stay = sum(part["resident_bytes"] for part in plan["components"])
        row = f"| {limit / GIB:.0f} GiB | {stay / GIB:.2f} | {plan['total_bytes'] / GIB:.2f} "
        try:
            most, seconds, digest = measured(args, limit)
            row += f"| {most['RssAnon'] / GIB:.2f} | {most['RssFile'] / GIB:.2f} | {seconds:.0f} | {digest[:8]} |"
        except (Exception, SystemExit) as error:
            row += f"| failed: {error} | | | |"
        print(row, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
