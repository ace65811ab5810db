"""LiteLLM, as a library and as the proxy that others are pointed at."""

import io
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("LITELLM_LOG", "ERROR")

import litellm
import openai

from checks import API_KEY, MODEL, ORIGIN, PROMPT, SIZE, check, expect, expect_base64, expect_url, finish, png

VERSION = "2025-04-01-preview"
PROXY_KEY = "sk-proxy"
PORT = int(os.environ.get("LITELLM_PORT", "8491"))

WAYS = {
    "openai": {"model": f"openai/{MODEL}", "api_base": f"{ORIGIN}/v1"},
    "hosted_vllm": {"model": f"hosted_vllm/{MODEL}", "api_base": f"{ORIGIN}/v1"},
    "azure": {"model": f"azure/{MODEL}", "api_base": ORIGIN, "api_version": VERSION},
    "azure, version 1": {"model": f"azure/{MODEL}", "api_base": ORIGIN, "api_version": "preview"},
    "azure, deployment in the base": {
        "model": f"azure/{MODEL}",
        "api_base": f"{ORIGIN}/openai/deployments/{MODEL}",
        "api_version": VERSION,
    },
}
# LiteLLM itself completes this one's address in generations and not in edits.
NO_EDITS = {"azure, deployment in the base"}


def named_picture(shade=0):
    picture = io.BytesIO(png(shade=shade))
    picture.name = "a.png"
    return picture


for name, way in WAYS.items():

    @check(f"library, {name}: generate")
    def _():
        reply = litellm.image_generation(prompt=PROMPT, size=SIZE, api_key=API_KEY, **way)
        expect_base64(reply.data[0].b64_json)

    if name in NO_EDITS:
        continue

    @check(f"library, {name}: edit, with several pictures and a seed")
    def _():
        reply = litellm.image_edit(image=[named_picture()], prompt=PROMPT, api_key=API_KEY, seed=3, **way)
        expect_base64(reply.data[0].b64_json)


@check("library: dall-e-2 by address")
def _():
    reply = litellm.image_generation(
        prompt=PROMPT, size=SIZE, model="openai/dall-e-2", api_base=f"{ORIGIN}/v1", api_key=API_KEY
    )
    expect_url(reply.data[0].url)


@check("library: a wrong key is an AuthenticationError")
def _():
    try:
        litellm.image_generation(prompt=PROMPT, api_key="wrong", **WAYS["azure"])
    except litellm.AuthenticationError:
        pass  # its Azure part drops the words of the error
    else:
        raise AssertionError("it should be refused")


CONFIG = "model_list:\n" + "".join(
    f"""- model_name: {name.replace(" ", "-").replace(",", "")}
  litellm_params:
    api_key: {API_KEY}
"""
    + "".join(f"    {key}: {value}\n" for key, value in way.items())
    for name, way in WAYS.items()
)


def start_proxy(folder):
    config = Path(folder, "config.yaml")
    config.write_text(CONFIG)
    log = Path(folder, "proxy.log").open("wb")
    program = Path(sys.executable).with_name("litellm")
    command = [program, "--config", config, "--port", str(PORT), "--host", "127.0.0.1"]
    environment = {**os.environ, "LITELLM_MASTER_KEY": PROXY_KEY}
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health/liveliness", timeout=2)
            return process
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.5)
    print(Path(folder, "proxy.log").read_text()[-3000:])
    process.kill()
    raise RuntimeError("the proxy does not start")


with tempfile.TemporaryDirectory() as folder:
    proxy = start_proxy(folder)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=PROXY_KEY, max_retries=0)
        for name in (way.replace(" ", "-").replace(",", "") for way in WAYS if way not in NO_EDITS):

            @check(f"proxy, {name}: generate")
            def _():
                expect_base64(client.images.generate(model=name, prompt=PROMPT, size=SIZE).data[0].b64_json)

            @check(f"proxy, {name}: edit")
            def _():
                expect_base64(client.images.edit(model=name, prompt=PROMPT, image=named_picture()).data[0].b64_json)
    finally:
        proxy.terminate()
        proxy.wait(20)

finish()
