"""What OpenAI's client for Python makes of files and batches.

    python batches.py target/debug/diffuser-api
    python batches.py http://gateway:8000

Starts the server with a folder for its data, drives batches as a program would, and ends the
server in the middle of one; one that runs already is not ended. Prints a line for each check;
ends with 1 if one failed.
"""

import base64
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    import httpx
except ImportError:  # openai from 3 on
    import httpx2 as httpx
import openai

# A PNG of one pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000"
    "000301010018dd8db00000000049454e44ae426082"
)
PICTURE = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
ENDPOINT = "/v1/images/edits"
OVER = {"completed", "failed", "expired", "cancelled"}


class Running:
    """A server that somebody else started."""

    def __init__(self, url: str):
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def kill(self) -> None:
        pass


class Server(Running):
    """A server over the data in a folder."""

    def __init__(self, program: str, folder: str):
        self.program, self.folder = program, folder
        self.start()

    def start(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        # One line may be under way each time that the server is ended.
        environment = {"DIFFUSER_DATA_DIR": self.folder, "DIFFUSER_JOBS_MAX_TRIES": "10", "PATH": ""}
        command = [self.program, "--model", "tiny-random", "--port", str(port)]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert self.process.poll() is None, "the server has ended"
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def line(custom_id: str, **changes) -> str:
    body = {
        "prompt": "a hill",
        "images": [{"image_url": PICTURE}],
        "size": "32x32",
        "num_inference_steps": 1,
        "seed": 7,
        **changes,
    }
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}) + "\n"


def begin(client: openai.OpenAI, lines: str, **more):
    uploaded = client.files.create(file=("in.jsonl", lines.encode()), purpose="batch", **more)
    return client.batches.create(
        input_file_id=uploaded.id, endpoint=ENDPOINT, completion_window="24h", metadata={"of": "a check"}
    )


def wait(server: Running, batch_id: str):
    for _ in range(600):
        batch = server.client.batches.retrieve(batch_id)
        if batch.status in OVER:
            return batch
        time.sleep(0.1)
    raise AssertionError(f"the batch is {batch.status}: {batch.request_counts}")


def lines_of(client: openai.OpenAI, file_id) -> dict:
    if file_id is None:
        return {}
    lines = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    named = {line["custom_id"]: line for line in lines}
    assert len(named) == len(lines), "two lines of one request"
    return named


def raised(kind: type, call) -> openai.APIStatusError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def whole_way(server: Running) -> None:
    client = server.client
    lines = line("good") + line("bad", size="1x") + line("other", seed=8)
    batch = begin(client, lines, expires_after={"anchor": "created_at", "seconds": 3600})
    assert (batch.status, batch.object, batch.metadata) == ("validating", "batch", {"of": "a check"})
    file = client.files.retrieve(batch.input_file_id)
    assert file.expires_at - file.created_at == 3600 and file.bytes == len(lines), file
    assert client.files.content(file.id).text == lines
    assert client.files.wait_for_processing(file.id).status == "processed"

    ended = wait(server, batch.id)
    assert ended.status == "completed" and ended.completed_at >= ended.in_progress_at, ended
    counts = ended.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1), counts
    output = lines_of(client, ended.output_file_id)
    assert set(output) == {"good", "other"} and output["good"]["response"]["status_code"] == 200
    direct = client.images.edit(
        image=("a.png", PIXEL), prompt="a hill", size="32x32", extra_body={"steps": 1, "seed": 7}
    )
    assert output["good"]["response"]["body"]["data"][0]["b64_json"] == direct.data[0].b64_json
    errors = lines_of(client, ended.error_file_id)
    error = errors["bad"]["response"]
    assert (error["status_code"], error["body"]["error"]["param"]) == (400, "size"), errors
    assert client.files.retrieve(ended.output_file_id).purpose == "batch_output"


def faulty_file(server: Running) -> None:
    ended = wait(server, begin(server.client, line("a") + "{nonsense\n" + line("a")).id)
    assert ended.status == "failed", ended
    told = [(fault.line, fault.code, fault.param) for fault in ended.errors.data]
    assert told == [(2, "invalid_json_line", None), (3, "duplicate_custom_id", "custom_id")], told


def wrong_calls(server: Running) -> None:
    client = server.client
    create = client.files.create
    error = raised(openai.BadRequestError, lambda: create(file=b"x", purpose="assistants"))
    assert error.param == "purpose", error
    raised(openai.NotFoundError, lambda: client.files.retrieve("file-none"))
    raised(openai.NotFoundError, lambda: client.batches.retrieve("batch_none"))
    batches = client.batches.create
    error = raised(
        openai.BadRequestError,
        lambda: batches(input_file_id="file-none", endpoint=ENDPOINT, completion_window="24h"),
    )
    assert error.param == "input_file_id", error


def pages_and_deletion(server: Running) -> None:
    client = server.client
    for batch in [begin(client, "x") for _ in range(3)]:
        wait(server, batch.id)
    # The client asks for further pages by itself.
    ids = [batch.id for batch in client.batches.list(limit=2)]
    assert len(ids) >= 3 and ids == sorted(ids, reverse=True), ids
    files = [file.id for file in client.files.list(limit=2, order="asc")]
    assert files == sorted(files) and len(files) >= 3, files
    assert client.files.delete(files[0]).deleted
    raised(openai.NotFoundError, lambda: client.files.retrieve(files[0]))


def cancelled(server: Running) -> None:
    client = server.client
    batch = begin(client, "".join(line(str(number), num_inference_steps=50) for number in range(200)))
    assert client.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
    ended = wait(server, batch.id)
    assert ended.status == "cancelled" and ended.cancelled_at >= ended.cancelling_at, ended
    lines = lines_of(client, ended.error_file_id) | lines_of(client, ended.output_file_id)
    assert len(lines) == ended.request_counts.total, ended.request_counts


def cut_off(server: Server) -> None:
    names = {str(number) for number in range(30)}
    batch = begin(server.client, "".join(line(name, seed=int(name)) for name in sorted(names)))
    for _ in range(3):
        time.sleep(0.3)
        server.kill()
        server.start()
    ended = wait(server, batch.id)
    assert ended.status == "completed", ended
    output = lines_of(server.client, ended.output_file_id)
    assert set(output) == names, f"{len(output)} lines"
    seeds = {name: line["response"]["body"]["data"][0]["seed"] for name, line in output.items()}
    assert seeds == {name: int(name) for name in names}, seeds


def main() -> int:
    failed = 0
    checks = [whole_way, faulty_file, wrong_calls, pages_and_deletion, cancelled]
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1].startswith("http"):
            server = Running(sys.argv[1])
        else:
            server = Server(str(Path(sys.argv[1]).resolve()), folder)
            checks.append(cut_off)
        try:
            for check in checks:
                try:
                    check(server)
                    print(f"PASS {check.__name__}")
                except (AssertionError, openai.OpenAIError) as error:
                    failed += 1
                    print(f"FAIL {check.__name__}: {error!r}")
        finally:
            server.kill()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
