"""Holds a server against its own OpenAPI document with schemathesis, which is installed into a folder of its own.

SECONDS (150) in all, EXAMPLES (10) for each operation at a time, SEED (1). Exits with what schemathesis exits with: 0 if nothing was found.
"""

import os
import subprocess
import sys
import tempfile
import venv

from server import ROOT, Server

VERSION = "4.32.5"
FOLDER = ROOT / "target/schemathesis"
PROGRAM = FOLDER / "bin/schemathesis"
MODELS = ("tiny-random", ROOT / "tests/data/fixtures/ckpt/qwen-image")
KEY = "for-this-test-only"
SETTINGS = {
    "DIFFUSER_ADMIN_KEYS": KEY,
    # Valid requests may ask for ten pictures of four megapixels: those are called off.
    "DIFFUSER_REQUEST_TIMEOUT_S": "2",
    "DIFFUSER_PICTURES_MAX_BYTES": str(16 << 20),
}


def install():
    if not PROGRAM.exists():
        venv.create(FOLDER, with_pip=True)
        subprocess.run([FOLDER / "bin/pip", "install", "--quiet", f"schemathesis=={VERSION}"], check=True)


def main():
    install()
    with Server(MODELS, SETTINGS) as server, tempfile.TemporaryDirectory() as folder:
        document = f"http://127.0.0.1:{server.port}/openapi.json"
        command = [
            PROGRAM, "--config-file", ROOT / "tools/operations/schemathesis.toml",
            "run", document, "--header", f"Authorization: Bearer {KEY}",
            "--max-time", os.environ.get("SECONDS", "150"),
            "--max-examples", os.environ.get("EXAMPLES", "10"), "--seed", os.environ.get("SEED", "1"),
            "--continue-on-failure", "--request-timeout", "30", "--generation-database", "none",
        ]
        # What it keeps from one run to the next is not wanted here.
        status = subprocess.run([str(part) for part in command], check=False, cwd=folder).returncode
        ended = server.process.poll()
    if ended is not None:
        print(f"BAD the server ended with {ended}")
    sys.exit(status or ended is not None)


if __name__ == "__main__":
    main()
