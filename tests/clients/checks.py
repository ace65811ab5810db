"""What the scripts for Python's clients share: a server, two pictures, and checks with a name each."""

import base64
import os
import sys
import time
import traceback
import urllib.request
import zlib

ORIGIN = os.environ["CLIENTS_ORIGIN"]
API_KEY = os.environ["CLIENTS_KEY"]
MODEL = "gpt-image-1"
SIZE = "64x64"
PROMPT = "a red circle"

_results = []


def png(width=64, height=48, shade=0):
    """A small picture, without any library."""

    def chunk(tag, data):
        body = tag + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    rows = b"".join(
        b"\0" + bytes(value for x in range(width) for value in (x // 8 * 30, y // 8 * 40, shade)) for y in range(height)
    )
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def expect(truth, what):
    if not truth:
        raise AssertionError(what)


def expect_png(data):
    expect(data.startswith(b"\x89PNG"), f"no picture: {data[:40]!r}")


def expect_base64(text):
    expect(isinstance(text, str) and text, f"no base64: {text!r:.80}")
    expect_png(base64.b64decode(text))


def expect_url(url):
    """The picture is there, for whoever has the address."""
    expect(isinstance(url, str) and url.startswith(ORIGIN), f"no address: {url!r}")
    expect_png(urllib.request.urlopen(url, timeout=30).read())


def check(name):
    """Runs what it decorates, and says how that went."""

    def run(function):
        started = time.monotonic()
        try:
            function()
            print(f"PASS {name} ({time.monotonic() - started:.1f} s)", flush=True)
            _results.append(True)
        except Exception as error:
            print(f"FAIL {name}: {type(error).__name__}: {str(error)[:600]}", flush=True)
            if os.environ.get("VERBOSE"):
                traceback.print_exc()
            _results.append(False)

    return run


def finish():
    failed = _results.count(False)
    print(f"{len(_results) - failed} passed, {failed} failed", flush=True)
    sys.exit(failed > 0 or not _results)
