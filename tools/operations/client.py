"""HTTP/1.1 as these programs need it: every byte of an answer is seen, and a client may stop anywhere.

`exchange` asks on a connection of its own and reads until the server closes it, so that a second
answer, or bytes behind the first, would be noticed. `Raw` is a connection for those who misbehave.
"""

import json
import socket
import struct
import uuid
import zlib
from dataclasses import dataclass, field

TIMEOUT_S = 300


class BrokenAnswer(Exception):
    """The connection ended before a whole answer, or more than one came."""


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes = field(repr=False)

    def json(self):
        return json.loads(self.body)

    def picture(self):
        """The first picture, as it was sent; None without one."""
        return self.json()["data"][0]["b64_json"] if self.status == 200 else None

    def events(self):
        """Name and data of each server-sent event."""
        blocks = self.body.decode().split("\n\n")
        for block in blocks:
            lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":")
            if "data" in lines:
                yield lines.get("event", ""), json.loads(lines["data"])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def request_bytes(method, path, body=b"", headers=None, length=None) -> bytes:
    """A whole request; `length`: what it says that its body's length is."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    if body or length or method == "POST":
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def exchange(port, method, path, body=b"", headers=None, timeout_s=TIMEOUT_S) -> Answer:
    """Asks, and reads to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        connection.sendall(request_bytes(method, path, body, headers))
        received = bytearray()
        while chunk := connection.recv(1 << 16):
            received += chunk
    return parse(bytes(received))


def get(port, path, timeout_s=TIMEOUT_S, headers=None) -> Answer:
    return exchange(port, "GET", path, headers=headers, timeout_s=timeout_s)


def post_json(port, path, fields, timeout_s=TIMEOUT_S, headers=None) -> Answer:
    body = json.dumps(fields).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    return exchange(port, "POST", path, body, headers, timeout_s)


def post_form(port, path, fields, files, timeout_s=TIMEOUT_S, headers=None) -> Answer:
    body, content_type = form(fields, files)
    return exchange(port, "POST", path, body, {**content_type, **(headers or {})}, timeout_s)


def parse(received: bytes) -> Answer:
    """Exactly one answer."""
    head, separator, rest = received.partition(b"\r\n\r\n")
    if not separator:
        raise BrokenAnswer(f"no whole head in {len(received)} bytes")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body, rest = unchunked(rest)
    else:
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            raise BrokenAnswer(f"{len(rest)} of {length} bytes of a body")
        body, rest = rest[:length], rest[length:]
    if rest:
        raise BrokenAnswer(f"{len(rest)} bytes behind the answer: {rest[:40]!r}")
    return Answer(int(status_line.split()[1]), headers, body)


def unchunked(rest: bytes):
    """The body, and what stands behind it."""
    body = bytearray()
    while True:
        size, separator, rest = rest.partition(b"\r\n")
        if not separator:
            raise BrokenAnswer("a body in chunks without its last one")
        length = int(size, 16)
        if len(rest) < length + 2:
            raise BrokenAnswer("a chunk is cut short")
        body += rest[:length]
        rest = rest[length + 2:]
        if length == 0:
            return bytes(body), rest


def form(fields, files):
    """A form's body and its header. `files`: (field, content) pairs."""
    boundary = uuid.uuid4().hex
    parts = []
    for name, value in fields.items():
        parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    for name, content in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="picture.png"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    parts.append(f"--{boundary}--\r\n".encode())
    return b"".join(parts), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def picture(width=160, height=120) -> bytes:
    """A PNG with structure, the same every time."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            rows += bytes((x * 255 // width, y * 255 // height, x * y % 256))

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class Raw:
    """A connection that does what it is told, and may be dropped at any time."""

    def __init__(self, port, data=b"", receive_bytes=None):
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(10)
        self.received = bytearray()
        self.socket.connect(("127.0.0.1", port))
        self.send(data)

    def send(self, data) -> bool:
        """Whether the peer still took it."""
        try:
            self.socket.sendall(data)
            return True
        except OSError:
            return False

    def read(self, count) -> bytes:
        return self.socket.recv(count)

    def is_open(self) -> bool:
        """Whether the peer has not closed it. What is there to be read goes into `received`."""
        self.socket.setblocking(False)
        try:
            while chunk := self.socket.recv(1 << 16):
                self.received += chunk
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self.socket.settimeout(10)

    def close(self):
        self.socket.close()
