"""Starts the server and a Prometheus that scrapes it, makes pictures, and compares.

Called by `prometheus` beside it, with the path of the program.
"""

import base64
import json
import pathlib
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib

MODEL = "tiny-random"
# From start to end; the slowest part is Prometheus's start.
PATIENCE_S = 50
PICTURES = 3
# What `promtool check metrics` has against names that routers prescribe.
ROUTERS = "vllm:"

deadline = time.monotonic() + PATIENCE_S


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what, attempt):
    """What `attempt` returns once that is something."""
    while time.monotonic() < deadline:
        try:
            result = attempt()
        except OSError:
            result = None
        if result:
            return result
        time.sleep(0.2)
    raise SystemExit(f"not in time: {what}")


def get(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def post(url, body):
    """The status of the answer."""
    head = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), head)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            response.read()
            return response.status
    except urllib.error.HTTPError as refused:
        return refused.code


def start(folder, name, *command):
    log = open(folder / f"{name}.log", "w")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


class Prometheus:
    def __init__(self, folder, port, target):
        self.url = f"http://127.0.0.1:{port}"
        settings = folder / "prometheus.yml"
        # JSON is YAML, too.
        scrape = {"job_name": "diffuser", "static_configs": [{"targets": [target]}]}
        scrape |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
        settings.write_text(json.dumps({"scrape_configs": [scrape]}))
        subprocess.run(["promtool", "check", "config", settings], check=True, stdout=subprocess.DEVNULL)
        self.process = start(
            folder,
            "prometheus",
            "prometheus",
            f"--config.file={settings}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        )

    def ask(self, query):
        """The values that a query has."""
        answer = json.loads(get(f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": query})))
        assert answer["status"] == "success", answer
        return [float(series["value"][1]) for series in answer["data"]["result"]]

    def expect(self, query, value):
        seen = []

        def is_there():
            seen[:] = self.ask(query)
            return seen == [value]

        try:
            until(query, is_there)
        except SystemExit as late:
            raise SystemExit(f"{late}: expected {value}, got {seen}") from None
        print(f"  {query} = {value}")


def check_text(text):
    """Holds the text against promtool's rules, but for names that are not ours."""
    ours = "\n".join(line for line in text.splitlines() if ROUTERS not in line) + "\n"
    check = subprocess.run(["promtool", "check", "metrics"], input=ours, text=True, capture_output=True)
    if check.returncode != 0:
        raise SystemExit(f"promtool check metrics: {check.stdout}{check.stderr}")
    whole = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
    remarks = (whole.stdout + whole.stderr).splitlines()
    foreign = [line for line in remarks if not re.search(f"{ROUTERS}.*should not contain ':'", line)]
    if foreign:
        raise SystemExit(f"promtool check metrics: {foreign}")


def grey_png(side):
    """A data URL."""

    def chunk(kind, data):
        framed = kind + data
        return struct.pack(">I", len(data)) + framed + struct.pack(">I", zlib.crc32(framed))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\x80" * 3 * side) * side
    chunks = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return "data:image/png;base64," + base64.b64encode(file).decode()


def make_pictures(base):
    picture = {"image_url": grey_png(64)}
    body = {"prompt": "a cat", "images": [picture], "size": "64x64", "num_inference_steps": 2}

    def expect(status, change):
        given = post(f"{base}/v1/images/edits", body | change)
        assert given == status, f"{change}: {given}"

    for _ in range(PICTURES):
        expect(200, {})
    expect(400, {"n": 0})
    expect(404, {"model": "no-such"})


def check(prometheus, base):
    model = f'model="{MODEL}"'
    prometheus.expect("up", 1)
    for name in ("waiting", "running"):
        prometheus.expect(f'{{__name__="vllm:num_requests_{name}",model_name="{MODEL}"}}', 0)
    # The first scrape has the counters at zero, so that Prometheus sees them grow.
    prometheus.expect(f'diffuser_images_total{{{model},operation="edit"}}', 0)
    make_pictures(base)
    route = 'route="/v1/images/edits"'
    for query, value in [
        (f'diffuser_images_total{{{model},operation="edit"}}', PICTURES),
        (f'diffuser_pixels_total{{{model},operation="edit"}}', PICTURES * 64 * 64),
        (f'diffuser_http_requests_total{{{route},status="200"}}', PICTURES),
        (f'sum(diffuser_http_requests_total{{{route},status=~"4.."}})', 2),
        ('diffuser_errors_total{code="model_not_found"}', 1),
        (f"diffuser_queue_wait_seconds_count{{{model}}}", PICTURES),
        (f"diffuser_step_duration_seconds_count{{{model}}}", 2 * PICTURES),
        (f'diffuser_stage_duration_seconds_count{{{model},stage="decoding"}}', PICTURES),
        (f'diffuser_model_loaded{{{model},device="cpu"}}', 1),
        (f"diffuser_cancellations_total{{{model}}}", 0),
        ("count(diffuser_build_info)", 1),
        ('count({__name__="vllm:lora_requests_info"})', 1),
    ]:
        prometheus.expect(query, value)
    increased = f'increase(diffuser_images_total{{{model},operation="edit"}}[1m]) > bool 0'
    prometheus.expect(increased, 1)
    quantile = f"histogram_quantile(0.9, rate(diffuser_queue_wait_seconds_bucket{{{model}}}[1m])) >= bool 0"
    prometheus.expect(quantile, 1)


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        server = start(folder, "server", program, "--model", MODEL, "--port", str(port))
        prometheus = Prometheus(folder, free_port(), f"127.0.0.1:{port}")
        try:
            until("the server", lambda: get(f"{base}/health"))
            until("Prometheus", lambda: get(f"{prometheus.url}/-/ready"))
            check(prometheus, base)
            check_text(get(f"{base}/metrics"))
        except BaseException:
            for log in ("server", "prometheus"):
                print(f"== {log}", (folder / f"{log}.log").read_text()[-2000:], sep="\n")
            raise
        finally:
            for process in (server, prometheus.process):
                process.terminate()
                process.wait(20)
    print("Prometheus has seen everything; promtool has nothing against it")


main()
