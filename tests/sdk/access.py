"""What OpenAI's client for Python makes of keys and limits.

    python access.py target/debug/diffuser-api

Makes keys with `diffuser-api keys new`, starts the server with them, and asks as their owners
would. Prints a line for each check; ends with 1 if one failed.
"""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import openai

# A PNG of one pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000"
    "000301010018dd8db00000000049454e44ae426082"
)


class Owner:
    """A client with a key, which counts the requests that it sends."""

    def __init__(self, base_url: str, key: str, retries: int = 0):
        self.sent = 0
        hooks = {"request": [self._count]}
        http = httpx.Client(event_hooks=hooks, timeout=120)
        self.client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=retries, http_client=http)

    def _count(self, _request: httpx.Request) -> None:
        self.sent += 1

    def edit(self):
        return self.client.images.edit(
            model="gpt-image-1", image=("a.png", PIXEL), prompt="a hill", size="32x32", extra_body={"steps": 1}
        )


def raised(kind: type, call) -> openai.APIStatusError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def unknown_key(url: str, keys: dict) -> None:
    error = raised(openai.AuthenticationError, Owner(url, "sk-nobody").client.models.list)
    assert error.code == "invalid_api_key", error.code


def expired_key(url: str, keys: dict) -> None:
    error = raised(openai.AuthenticationError, Owner(url, keys["expired"]).client.models.list)
    assert error.code == "invalid_api_key" and "expired" in error.message, error


def other_scope(url: str, keys: dict) -> None:
    error = raised(openai.PermissionDeniedError, Owner(url, keys["metrics"], 2).client.models.list)
    assert error.type == "invalid_request_error", error.type


def other_model(url: str, keys: dict) -> None:
    owner = Owner(url, keys["elsewhere"])
    assert owner.client.models.list().data == []
    error = raised(openai.PermissionDeniedError, owner.edit)
    assert (error.code, error.param) == ("model_not_found", "model"), error


def too_fast(url: str, keys: dict) -> None:
    owner = Owner(url, keys["slow"])
    first = owner.client.models.with_raw_response.list()
    assert first.headers["x-ratelimit-remaining-requests"] == "0", first.headers
    error = raised(openai.RateLimitError, owner.client.models.list)
    assert (error.code, error.type) == ("rate_limit_exceeded", "requests"), error
    assert 0 < int(error.response.headers["retry-after-ms"]) <= 60_000
    assert error.response.headers["x-ratelimit-limit-requests"] == "1"


def spent(url: str, keys: dict) -> None:
    owner = Owner(url, keys["one"], retries=2)
    assert owner.edit().data[0].b64_json
    error = raised(openai.RateLimitError, owner.edit)
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota"), error
    assert owner.sent == 2, f"what is spent for today was tried again: {owner.sent} requests"


def new_key(program: str, file: Path, name: str, *arguments: str) -> str:
    command = [program, "keys", "new", name, "--file", str(file), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(300):
        assert server.poll() is None, "the server has ended"
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


def main() -> int:
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.toml"
        keys = {
            "expired": new_key(program, file, "expired", "--expires", "2001-01-01"),
            "metrics": new_key(program, file, "metrics", "--scope", "metrics"),
            "elsewhere": new_key(program, file, "elsewhere", "--models", "other/*"),
            "slow": new_key(program, file, "slow", "--requests-per-minute", "1"),
            "one": new_key(program, file, "one", "--pictures-per-day", "1"),
        }
        port = free_port()
        environment = {"DIFFUSER_KEYS_FILE": str(file), "PATH": ""}
        command = [program, "--model", "tiny-random", "--port", str(port)]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        failed = 0
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            for check in [unknown_key, expired_key, other_scope, other_model, too_fast, spent]:
                try:
                    check(f"http://127.0.0.1:{port}/v1", keys)
                    print(f"PASS {check.__name__}")
                except (AssertionError, openai.OpenAIError) as error:
                    failed += 1
                    print(f"FAIL {check.__name__}: {error}")
        finally:
            server.terminate()
            server.wait()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
