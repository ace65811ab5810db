"""Open WebUI itself: its server, set up and driven through its own HTTP API.

Installed without the local models for speech and embeddings (torch and what needs it),
which its pictures do not touch.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from checks import API_KEY, ORIGIN, PROMPT, check, expect, expect_png, finish, png

PORT = int(os.environ.get("OPEN_WEBUI_PORT", "8492"))
HERE = f"http://127.0.0.1:{PORT}"
token = None


def call(method, path, body=None):
    """A request to Open WebUI; JSON if the answer is some, else bytes."""
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(HERE + path, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers["content-type"] else content
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{error.code}: {error.read().decode()}") from None


def start(folder):
    environment = {
        **os.environ,
        "DATA_DIR": folder,
        "WEBUI_SECRET_KEY": "clients",
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        # A local embedding model would be loaded otherwise.
        "RAG_EMBEDDING_ENGINE": "openai",
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_VERSION_UPDATE_CHECK": "false",
        "ANONYMIZED_TELEMETRY": "false",
    }
    log = Path(folder, "open-webui.log")
    program = Path(sys.executable).with_name("open-webui")
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(PORT)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=folder)
    for _ in range(360):
        try:
            call("GET", "/health")
            return process
        except (OSError, RuntimeError):
            if process.poll() is not None:
                break
            time.sleep(0.5)
    process.kill()
    print(log.read_text()[-4000:])
    sys.exit("FAIL Open WebUI does not start")


def settings(**changes):
    """What an administrator would type into the page of settings."""
    config = call("GET", "/api/v1/images/config")
    config |= {
        "ENABLE_IMAGE_GENERATION": True,
        "IMAGE_GENERATION_ENGINE": "openai",
        "IMAGES_OPENAI_API_BASE_URL": f"{ORIGIN}/v1",
        "IMAGES_OPENAI_API_KEY": API_KEY,
        "ENABLE_IMAGE_EDIT": True,
        "IMAGE_EDIT_ENGINE": "openai",
        "IMAGES_EDIT_OPENAI_API_BASE_URL": f"{ORIGIN}/v1",
        "IMAGES_EDIT_OPENAI_API_KEY": API_KEY,
        "IMAGE_SIZE": "64x64",
        "IMAGE_STEPS": 2,
    }
    call("POST", "/api/v1/images/config/update", config | changes)


def expect_pictures(reply, count=1):
    expect(len(reply) == count, reply)
    for picture in reply:
        expect_png(call("GET", picture["url"]))


def data_url():
    return "data:image/png;base64," + base64.b64encode(png()).decode()


with tempfile.TemporaryDirectory() as folder:
    process = start(folder)
    try:
        person = {"name": "clients", "email": "clients@localhost.test", "password": "correct horse battery"}
        token = call("POST", "/api/v1/auths/signup", person)["token"]

        for model in ("gpt-image-1", "dall-e-2", "qwen-image"):

            @check(f"generate with {model}")
            def _():
                settings(IMAGE_GENERATION_MODEL=model, IMAGE_EDIT_MODEL=model)
                expect_pictures(call("POST", "/api/v1/images/generations", {"prompt": PROMPT, "n": 2}), 2)

            @check(f"edit with {model}")
            def _():
                body = {"prompt": PROMPT, "image": data_url(), "size": "64x48"}
                expect_pictures(call("POST", "/api/v1/images/edit", body))
                body = {"prompt": PROMPT, "image": [data_url()]}
                expect_pictures(call("POST", "/api/v1/images/edit", body))

        @check("the model left empty in the settings: dall-e-2, and an empty field in edits")
        def _():
            settings(IMAGE_GENERATION_MODEL="", IMAGE_EDIT_MODEL="")
            expect_pictures(call("POST", "/api/v1/images/generations", {"prompt": PROMPT}))
            expect_pictures(call("POST", "/api/v1/images/edit", {"prompt": PROMPT, "image": data_url()}))

        @check("additional parameters")
        def _():
            additional = {"seed": 5, "num_inference_steps": 1}
            settings(IMAGE_GENERATION_MODEL="qwen-image", IMAGES_OPENAI_API_PARAMS=additional)
            expect_pictures(call("POST", "/api/v1/images/generations", {"prompt": PROMPT}))

        @check("by address: Open WebUI itself fetches none from a private network")
        def _():
            settings(IMAGES_OPENAI_API_PARAMS={"response_format": "url"})
            try:
                call("POST", "/api/v1/images/generations", {"prompt": PROMPT})
            except RuntimeError as error:
                expect(error.args[0].startswith("400"), error)
            finally:
                settings(IMAGES_OPENAI_API_PARAMS={})

        @check("Azure's address and an API version")
        def _():
            base = f"{ORIGIN}/openai/deployments/gpt-image-1"
            version = "2025-04-01-preview"
            settings(
                IMAGE_GENERATION_MODEL="gpt-image-1",
                IMAGE_EDIT_MODEL="gpt-image-1",
                IMAGES_OPENAI_API_BASE_URL=base,
                IMAGES_OPENAI_API_VERSION=version,
                IMAGES_EDIT_OPENAI_API_BASE_URL=base,
                IMAGES_EDIT_OPENAI_API_VERSION=version,
            )
            expect_pictures(call("POST", "/api/v1/images/generations", {"prompt": PROMPT}))
            expect_pictures(call("POST", "/api/v1/images/edit", {"prompt": PROMPT, "image": data_url()}))
            settings(IMAGES_OPENAI_API_VERSION="", IMAGES_EDIT_OPENAI_API_VERSION="")

        @check("its connection to the server lists the models")
        def _():
            connection = {"url": f"{ORIGIN}/v1", "key": API_KEY}
            names = [model["id"] for model in call("POST", "/openai/verify", connection)["data"]]
            expect("gpt-image-1" in names, names)
            expect(call("GET", "/api/v1/images/models"), "the picker is empty")

        @check("a wrong key is told as such")
        def _():
            settings(IMAGES_OPENAI_API_KEY="wrong", IMAGE_GENERATION_MODEL="gpt-image-1")
            try:
                call("POST", "/api/v1/images/generations", {"prompt": PROMPT})
            except RuntimeError as error:
                expect("Unauthorized" in str(error), error)
            else:
                raise AssertionError("it should be refused")
    finally:
        process.terminate()
        process.wait(30)

finish()
