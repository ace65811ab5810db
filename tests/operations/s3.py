"""Pictures in a bucket and on a full disk: what clients see. See the script `s3`.

    s3.py PROGRAM FOLDER
"""

import base64
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import boto3
import requests
from botocore.config import Config

PROGRAM, WORK = sys.argv[1], Path(sys.argv[2])
BUCKET = "pictures"
PATIENCE_S = 30
KEYS = {
    "AWS_ACCESS_KEY_ID": "test-id",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
failed = []


def check(is_so, what):
    print(f"{'PASS' if is_so else 'FAIL'} {what}", flush=True)
    if not is_so:
        failed.append(what)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(is_so):
    """Waits; whether it came to be."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.05)
    return False


def answers(address):
    try:
        return requests.get(address, timeout=5).status_code < 500
    except requests.RequestException:
        return False


def png(side=64):
    """A picture, without a library for it."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes((4 * x, 4 * y, 99)[c] for x in range(side) for c in range(3)) for y in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Bucket:
    """A server of S3 that can be killed and comes back empty."""

    def __init__(self):
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.start()

    def start(self):
        server = Path(sys.executable).with_name("moto_server")
        self.process = subprocess.Popen(
            [server, "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert until(lambda: answers(f"{self.address}/moto-api/")), "no S3 server"
        self.client().create_bucket(Bucket=BUCKET)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=KEYS["AWS_REGION"],
            config=Config(retries={"max_attempts": 1}),
        )

    def names(self, prefix):
        return [item["Key"] for item in self.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]

    def object(self, name):
        return self.client().get_object(Bucket=BUCKET, Key=name)


class Server:
    """The program."""

    def __init__(self, process, address, log):
        self.process, self.address, self.log = process, address, log

    def edit(self, accept="application/json", **fields):
        fields = {"prompt": "darker", "num_inference_steps": "1", "size": "64x64", **fields}
        return requests.post(
            f"{self.address}/v1/images/edits",
            data=fields,
            files={"image": ("x.png", png(), "image/png")},
            headers={"Accept": accept},
            timeout=60,
        )

    def url(self):
        reply = self.edit(response_format="url")
        assert reply.status_code == 200, reply.text
        return reply.json()["data"][0]["url"]


@contextmanager
def server(variables, before=None):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log = WORK / f"server-{port}.log"
    environment = {"DIFFUSER_MODEL_ID": "tiny-random", "DIFFUSER_DEVICE": "cpu", "DIFFUSER_PORT": str(port), **variables}
    with open(log, "wb") as stderr:
        process = subprocess.Popen([PROGRAM], env=environment, stdout=stderr, stderr=stderr, preexec_fn=before)
    try:
        assert until(lambda: process.poll() is not None or answers(f"{address}/ready")), "no server"
        assert process.poll() is None, log.read_text()
        yield Server(process, address, log)
    finally:
        process.terminate()
        process.wait()


def in_bucket(bucket, prefix, **variables):
    store = {"DIFFUSER_PICTURES_STORE": f"s3://{BUCKET}/{prefix}", "AWS_ENDPOINT_URL": bucket.address}
    return {**KEYS, **store, **variables}


def name_of(url):
    return url.split("?")[0].rsplit("/", 1)[1]


def through_the_server(bucket):
    with server(in_bucket(bucket, "a/b")) as first, server(in_bucket(bucket, "a/b")) as second:
        url = first.url()
        file = requests.get(url, timeout=30)
        stored = bucket.object(f"a/b/{name_of(url)}")
        check(url.startswith(f"{first.address}/v1/images/files/"), "an address leads through this server")
        check(file.status_code == 200 and file.content.startswith(b"\x89PNG"), "the picture is fetched by it")
        check(stored["Body"].read() == file.content, "the bucket has the same bytes")
        check(stored["ContentType"] == "image/png", "with their media type")
        check("max-age=3600" in stored["CacheControl"], "and how long they may be kept")
        shared = requests.get(f"{second.address}/v1/images/files/{name_of(url)}", timeout=30)
        check(shared.content == file.content, "another server of the bucket has it, too")
        part = requests.get(url, headers={"Range": "bytes=1-3"}, timeout=30)
        check((part.status_code, part.content) == (206, b"PNG"), "a part is read from the bucket")
        head = requests.head(url, timeout=30)
        check(head.headers["Content-Length"] == str(len(file.content)), "HEAD tells the length")
        gone = url.replace(name_of(url), "9999999999-" + 32 * "0" + ".png")
        check(requests.get(gone, timeout=30).status_code == 404, "a name that is not there is a 404")

        entry = first.edit(store="true").json()["data"][0]
        stored = requests.get(entry["url"], timeout=30).content
        check(stored == base64.b64decode(entry["b64_json"]), "store=true keeps what the reply has")
        sent = first.edit(accept="image/jpeg", store="true")
        stored = requests.get(sent.headers["x-diffuser-url"], timeout=30)
        check(stored.content == sent.content, "and of a file, the header has the address")
        check(stored.headers["Content-Type"] == "image/jpeg", "which is of its format")


def signed(bucket):
    with server(in_bucket(bucket, "signed", DIFFUSER_PICTURES_SIGNED_URLS="true")) as program:
        url = program.url()
        file = requests.get(url, timeout=30)
        check(url.startswith(f"{bucket.address}/{BUCKET}/signed/"), "a signed address is the bucket's")
        check("X-Amz-Expires=3600" in url and "X-Amz-Signature=" in url, "signed for the lifetime")
        check(file.content.startswith(b"\x89PNG"), "and leads to the picture")
        check(file.headers["Content-Type"] == "image/png", "with its media type")


def cleaned(bucket):
    with server(in_bucket(bucket, "short", DIFFUSER_PICTURES_LIFETIME_S="2")) as program:
        foreign = "short/notes.txt"
        bucket.client().put_object(Bucket=BUCKET, Key=foreign, Body=b"mine")
        url = program.url()
        check(until(lambda: bucket.names("short") == [foreign]), "what is over is deleted, and nothing else")
        check(requests.get(url, timeout=30).status_code == 404, "its address leads nowhere")


def killed(bucket):
    with server(in_bucket(bucket, "lost")) as program:
        url = program.url()
        bucket.kill()
        refused = program.edit(response_format="url")
        code = refused.json()["error"]["code"]
        check((refused.status_code, code) == (503, "storage_unavailable"), "without the bucket a 503")
        check(refused.headers["Retry-After"] == "10", "which says when to come back")
        check(requests.get(url, timeout=60).status_code == 503, "so does an address")
        made = program.edit(store="true")
        reply = made.json()
        check(made.status_code == 200 and "b64_json" in reply["data"][0], "a picture that is made comes")
        check("'store'" in reply["warnings"][0], "with a warning that it was not stored")
        check(answers(f"{program.address}/health"), "the server is well")
        bucket.start()
        check(requests.get(program.url(), timeout=30).status_code == 200, "when the bucket is back all is well")
        log = program.log.read_text()
        check(not re.search(r"[0-9]{10}-[0-9a-f]{32}", log), "no address is in the log")
        check(KEYS["AWS_SECRET_ACCESS_KEY"] not in log, "nor a secret")


@contextmanager
def small_disk(folder):
    """A folder that holds little, how its server is started, and what makes room."""
    if os.geteuid() == 0 and shutil.which("mount"):
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder])
        if mounted.returncode == 0:
            filler = Path(folder) / "filler"
            try:
                yield None, lambda: full(filler), filler.unlink
            finally:
                subprocess.run(["umount", "--lazy", folder], check=True)
            return

    def short_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    yield short_files, lambda: None, None


def full(filler):
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def full_disk():
    with tempfile.TemporaryDirectory() as folder, small_disk(folder) as (before, fill, empty):
        variables = {"DIFFUSER_PICTURES_STORE": f"file://{folder}", "DIFFUSER_LOG_FILTER": "off"}
        with server(variables, before) as program:
            fill()
            refused = program.edit(response_format="url")
            error = refused.json()["error"]
            check((refused.status_code, error["code"]) == (503, "storage_unavailable"), "a full disk is a 503")
            check("is full" in error["message"], "which says so")
            check(not list(Path(folder).glob("*.png*")), "and nothing is left of the picture")
            made = program.edit(store="true").json()
            check("is full" in made["warnings"][0] and "b64_json" in made["data"][0], "store=true gives the picture")
            if empty:
                empty()
                check(requests.get(program.url(), timeout=30).status_code == 200, "with room again all is well")


def refused_at_the_start():
    for store, said in [("file:///proc/pictures", "/proc/pictures"), ("az://container/x", "az://container/x")]:
        environment = {"DIFFUSER_MODEL_ID": "tiny-random", "DIFFUSER_PORT": "0", "DIFFUSER_PICTURES_STORE": store}
        ended = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, timeout=60)
        told = ended.stdout + ended.stderr
        check(ended.returncode != 0 and said in told, f"{store} is refused at the start")


def main():
    bucket = Bucket()
    try:
        through_the_server(bucket)
        signed(bucket)
        cleaned(bucket)
        killed(bucket)
    finally:
        bucket.kill()
    full_disk()
    refused_at_the_start()
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")
    print("all passed")


main()
