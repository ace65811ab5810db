"""Starts the server's program on a port of its own, looks at it from outside (/proc), and ends it.

BIN names the program; without it: target/release/diffuser-api of this repository.
"""

import contextlib
import functools
import os
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import client

ROOT = Path(__file__).resolve().parents[2]
BIN = str(Path(os.environ.get("BIN", ROOT / "target/release/diffuser-api")).resolve())
START_LIMIT_S = 120
STOP_LIMIT_S = 20


@functools.cache
def knows_setting(name: str) -> bool:
    """Whether the program has this setting: its help lists all of them."""
    listing = subprocess.run([BIN, "--help"], capture_output=True, text=True, check=True)
    return name in listing.stdout.split()


def raise_descriptor_limit(wanted: int) -> int:
    """What this process and those that it starts may open, as far as the system allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


class Server:
    """A running server; a context that ends it, by force if it must."""

    def __init__(self, models=("tiny-random",), settings=None, limits=None, output=None, command=()):
        """`settings`: variables; `limits`: (resource, number) pairs; `output`: an open file for its log; `command`: what starts it."""
        self.port = client.free_port()
        self.log = Path(tempfile.mkdtemp(prefix="diffuser-")) / "log"
        flags = [part for model in models for part in ("--model", str(model))]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DIFFUSER_")},
            "DIFFUSER_HOST": "127.0.0.1",
            "DIFFUSER_PORT": str(self.port),
            "HF_HUB_OFFLINE": "1",
            **(settings or {}),
        }

        def before_start():
            for kind, number in limits or ():
                resource.setrlimit(kind, (number, number))
            # A file that may not grow is an error to be told, as a full disk is, and not the end.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        with contextlib.ExitStack() as stack:
            output = output or stack.enter_context(open(self.log, "wb"))
            self.process = subprocess.Popen(
                [*command, BIN, *flags], env=environment, stdout=output, stderr=output,
                preexec_fn=before_start, cwd=ROOT,
            )

    def __enter__(self):
        try:
            self.wait_until(self.is_ready, START_LIMIT_S)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def is_ready(self) -> bool:
        """Health says that it works, and, where there is such a thing, that its models are loaded."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with {self.process.returncode}: {self.log_text()[-600:]}")
        with contextlib.suppress(OSError):
            if client.get(self.port, "/health", timeout_s=5).status == 200:
                return client.get(self.port, "/ready", timeout_s=5).status in (200, 404)
        return False

    def wait_until(self, condition, limit_s: float) -> float:
        """Seconds until it held."""
        begun = time.monotonic()
        while not condition():
            if time.monotonic() - begun > limit_s:
                raise TimeoutError(f"{condition.__name__} did not come to hold in {limit_s} s")
            time.sleep(0.02)
        return time.monotonic() - begun

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def health(self) -> dict:
        return client.get(self.port, "/health").json()

    def is_idle(self) -> bool:
        """Nothing runs and nobody waits."""
        health = self.health()
        return not health["busy"] and health["waiting"] == 0

    def is_busy(self) -> bool:
        return self.health()["busy"]

    def resident_bytes(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))
