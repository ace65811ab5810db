#!/usr/bin/env python3
"""Makes one picture with a checkpoint, and says what memory that took beside what was planned.

    python3 tools/full-size/run.py target/release/diffuser-api /tmp/full --data-limit 6 --area 262144

The server is started for it on a free port. `--data-limit` is what the process may have in all
(`ulimit -d`, GiB), so that a plan that is wrong fails; other settings are passed on as
`--set DIFFUSER_MEMORY=stream`. Linux only: anonymous memory is read from /proc.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

GIB = 1 << 30


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("checkpoint")
    parser.add_argument("--data-limit", type=float, help="GiB of memory that the process may have")
    parser.add_argument("--area", type=int, default=65536, help="pixels that are worked on")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(args, port, log):
    settings = {
        "DIFFUSER_PORT": str(port),
        "DIFFUSER_MODEL_ID": args.checkpoint,
        "DIFFUSER_TORCH_DTYPE": args.dtype,
        "DIFFUSER_DEVICE": "cpu",
        "DIFFUSER_IMAGE_AREA": str(args.area),
        "DIFFUSER_CONDITION_AREA": str(args.area),
        **dict(setting.split("=", 1) for setting in args.set),
    }
    if "2509" not in args.checkpoint and "2511" not in args.checkpoint:
        del settings["DIFFUSER_CONDITION_AREA"]

    def limit():
        if args.data_limit:
            most = int(args.data_limit * GIB)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    environment = {**os.environ, **settings, "NO_COLOR": "1"}
    return subprocess.Popen([args.program], env=environment, stdout=log, stderr=log, preexec_fn=limit)


def status(pid, name):
    """Bytes of an entry of the process's status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def watch(pid, most, over):
    while not over.is_set():
        try:
            for name in ("RssAnon", "RssFile"):
                most[name] = max(most.get(name, 0), status(pid, name))
        except OSError:
            return
        over.wait(0.1)


def wait_until_ready(server, port):
    while server.poll() is None:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server has ended")


def picture():
    """A picture of the tests, 100x61 pixels."""
    data = Path(__file__).resolve().parents[2] / "tests/data/fixtures/golden/inputs"
    return (data / "edit_cfg.image0.png").read_bytes()


def edit(port, args):
    boundary = "a-boundary-that-is-in-no-picture"
    fields = {
        "prompt": "make it red",
        "size": "reference",
        "seed": "1",
        "num_inference_steps": str(args.steps),
        "true_cfg_scale": str(args.guidance),
    }
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = b"".join(parts) + head.encode() + picture() + f"\r\n--{boundary}--\r\n".encode()
    kind = f"multipart/form-data; boundary={boundary}"
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/images/edits", body, {"Content-Type": kind}
    )
    with urllib.request.urlopen(request, timeout=7200) as reply:
        return json.load(reply)


@contextlib.contextmanager
def serving(args, log):
    """A server that answers: its port, and the most memory that it has taken so far."""
    port, most, over = free_port(), {}, threading.Event()
    server = start(args, port, log)
    threading.Thread(target=watch, args=(server.pid, most, over), daemon=True).start()
    try:
        wait_until_ready(server, port)
        yield port, most
    finally:
        over.set()
        server.terminate()
        server.wait()


def print_plan(log):
    """What the server has planned, or its last words."""
    log.seek(0)
    lines = log.read().splitlines()
    plans = [line for line in lines if "memory plan" in line]
    print("\n".join(re.sub(r"\x1b\[[0-9;]*m", "", line) for line in plans or lines[-5:]))


def main():
    args = arguments()
    with tempfile.TemporaryFile("w+") as log:
        started = time.monotonic()
        try:
            with serving(args, log) as (port, most):
                loaded_s, loaded = time.monotonic() - started, dict(most)
                started = time.monotonic()
                reply = edit(port, args)
                made_s = time.monotonic() - started
        finally:
            print_plan(log)
        print(f"loaded in {loaded_s:.1f} s, anonymous {loaded.get('RssAnon', 0) / GIB:.2f} GiB")
        print(f"picture of {reply['size']} in {made_s:.1f} s, {args.steps} steps")
        print(f"at most: anonymous {most['RssAnon'] / GIB:.2f} GiB, mapped files {most['RssFile'] / GIB:.2f} GiB")


if __name__ == "__main__":
    main()
