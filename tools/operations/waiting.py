"""Waits for what should come to hold."""

import time


def until(condition, limit_s: float = 120):
    """What the condition gave when it first held."""
    begun = time.monotonic()
    while time.monotonic() - begun < limit_s:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError(f"{condition.__name__} did not come to hold")
