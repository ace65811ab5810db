"""What the library of Standard Webhooks for Python makes of this server's messages.

    python webhooks.py target/debug/diffuser-api

Starts the server and a receiver, asks for a job, and verifies what comes. Prints a line; ends with
1 if something was wrong.
"""

import base64
import http.server
import os
import queue
import secrets
import socket
import subprocess
import sys
import threading
import time

import httpx
from standardwebhooks import Webhook, WebhookVerificationError

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000"
    "000301010018dd8db00000000049454e44ae426082"
)


class Receiver(http.server.BaseHTTPRequestHandler):
    received: queue.Queue = queue.Queue()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.put((dict(self.headers.items()), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    port = free_port()
    settings = {
        "DIFFUSER_WEBHOOK_URL": f"http://127.0.0.1:{receiver.server_port}/hook",
        "DIFFUSER_WEBHOOK_SECRET": secret,
        "DIFFUSER_WEBHOOK_ALLOW_PRIVATE": "true",
    }
    command = [sys.argv[1], "--model", "tiny-random", "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        fields = {"prompt": "a hill", "size": "64x64", "steps": "1", "background": "true"}
        files = {"image": ("a.png", PIXEL)}
        job = httpx.post(f"{url}/v1/images/edits", data=fields, files=files).raise_for_status().json()
        headers, body = Receiver.received.get(timeout=60)
        message = Webhook(secret).verify(body, headers)
        assert message["type"] == "image.job.completed" and message["data"]["id"] == job["id"], message
        try:
            Webhook(secret).verify(body + b" ", headers)
        except WebhookVerificationError:
            pass
        else:
            raise AssertionError("the signature does not depend on the body")
        print("ok    webhooks")
    finally:
        server.terminate()
        server.wait()
        receiver.shutdown()


if __name__ == "__main__":
    main()
