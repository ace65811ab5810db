"""Asks /health at a steady pace, in a process of its own: a client that is busy would measure itself.

python health_probe.py PORT SECONDS  prints, as JSON, how long each answer took, in milliseconds.
"""

import json
import sys
import time

import client

PERIOD_S = 0.05
LIMIT_S = 10


def main():
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    end = time.monotonic() + seconds
    took_ms, failures = [], []
    due = time.monotonic()
    while due < end:
        time.sleep(max(0, due - time.monotonic()))
        begun = time.monotonic()
        try:
            status = client.get(port, "/health", timeout_s=LIMIT_S).status
        except (OSError, client.BrokenAnswer) as error:
            status = type(error).__name__
        took_ms.append(round((time.monotonic() - begun) * 1000, 2))
        if status != 200:
            failures.append(status)
        # Who was late does not ask more often afterwards.
        due = max(due + PERIOD_S, time.monotonic())
    json.dump({"took_ms": took_ms, "failures": failures}, sys.stdout)


if __name__ == "__main__":
    main()
