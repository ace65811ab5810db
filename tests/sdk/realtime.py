"""What a common client of WebSockets, `websockets` for Python, makes of `/v1/realtime/images`.

    python realtime.py http://127.0.0.1:8000/v1

Asks for several pictures at once, calls one off, follows a job after a new connection, and holds
pictures against those of HTTP. Prints a line for each check; ends with 1 if one failed.
"""

import asyncio
import base64
import json
import sys

import httpx
import websockets

# A PNG of one pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000"
    "000301010018dd8db00000000049454e44ae426082"
)
IMAGE = "data:image/png;base64," + base64.b64encode(PIXEL).decode()


def body(**fields):
    fields = {"size": "64x64", "num_inference_steps": 2, **fields}
    return {"prompt": "a hill", "images": [{"image_url": IMAGE}], **fields}


class Session:
    def __init__(self, socket):
        self.socket = socket

    async def create(self, name, **fields):
        message = {"type": "image.create", "id": name, "endpoint": "edits", "body": body(**fields)}
        await self.socket.send(json.dumps(message))

    async def say(self, **message):
        await self.socket.send(json.dumps(message))

    async def until(self, name, *ends):
        """The messages about `name`, up to one of the types `ends`."""
        heard = []
        while not heard or heard[-1]["type"] not in ends:
            message = json.loads(await asyncio.wait_for(self.socket.recv(), 60))
            if message.get("id") == name:
                heard.append(message)
        return heard


def connect(url):
    socket_url = url.replace("http", "ws", 1) + "/realtime/images"
    # Pictures are larger than the megabyte that the client takes by itself.
    return websockets.connect(socket_url, max_size=None, subprotocols=["realtime"])


async def pictures(url):
    async with connect(url) as socket:
        assert socket.subprotocol == "realtime"
        assert json.loads(await socket.recv())["type"] == "session.created"
        session = Session(socket)
        await session.create("a", seed=5, partial_images=1)
        heard = await session.until("a", "image.completed")
        kinds = {message["type"] for message in heard}
        assert {"image.queued", "image.progress", "image.partial_image"} <= kinds, kinds
        direct = httpx.post(f"{url}/images/edits", json=body(seed=5), timeout=60).json()
        assert heard[-1]["response"]["data"] == direct["data"]


async def several(url):
    async with connect(url) as socket:
        session = Session(socket)
        for name in "abcd":
            await session.create(name, num_inference_steps=30)
        await session.say(type="image.cancel", id="d")
        await session.until("d", "image.cancelled")
        await session.create("e", size="nonsense")
        failed = (await session.until("e", "image.failed"))[-1]
        assert failed["error"]["param"] == "size", failed
        ended = set()
        while ended != set("abc"):
            message = json.loads(await asyncio.wait_for(socket.recv(), 60))
            if message["type"] == "image.completed":
                ended.add(message["id"])


async def job(url):
    async with connect(url) as socket:
        session = Session(socket)
        await session.create("a", seed=7, background=True)
        accepted = (await session.until("a", "image.accepted"))[-1]["job"]
    async with connect(url) as socket:
        session = Session(socket)
        await session.say(type="job.follow", id="f", job=accepted["id"])
        last = (await session.until("f", "job.completed", "job.failed"))[-1]
        assert last["job"]["status"] == "succeeded", last
    result = httpx.get(f"{url}/jobs/{accepted['id']}/result", timeout=60).json()
    direct = httpx.post(f"{url}/images/edits", json=body(seed=7), timeout=60).json()
    assert result["data"] == direct["data"]


async def large(url):
    async with connect(url) as socket:
        await socket.recv()
        try:
            for _ in range(3):
                await socket.send(json.dumps({"type": "x" * (60 << 20)}) + " " * (100 << 20))
            await socket.recv()
        except websockets.ConnectionClosed as closed:
            assert closed.rcvd and closed.rcvd.code == 1009, closed
        else:
            raise AssertionError("a message of 160 MiB was taken")


def main():
    url = sys.argv[1].rstrip("/")
    failed = False
    for check in (pictures, several, job, large):
        try:
            asyncio.run(check(url))
            print(f"ok    {check.__name__}")
        except Exception as error:  # each check is told of
            failed = True
            print(f"FAIL  {check.__name__}: {error!r}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
