"""A client that openapi-python-client makes of /openapi.json."""

import io
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from checks import API_KEY, ORIGIN, PROMPT, SIZE, check, expect, expect_base64, expect_url, finish, png

folder = tempfile.TemporaryDirectory()
document = urllib.request.urlopen(f"{ORIGIN}/openapi.json", timeout=30).read()
document_path = Path(folder.name, "openapi.json")
document_path.write_bytes(document)
generator = Path(sys.executable).with_name("openapi-python-client")
command = [generator, "generate", "--path", document_path, "--output-path", Path(folder.name, "diffuser"), "--meta", "none"]
generated = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
said = generated.stdout + generated.stderr


@check("generate the client")
def _():
    expect(generated.returncode == 0, said)
    # A file of a picture is no type that this generator knows; nothing else may be left out.
    unknown = [line for line in said.splitlines() if "annot parse" in line or "nsupported" in line]
    expect(all("image/" in line for line in unknown), unknown)


sys.path.insert(0, folder.name)
from diffuser import AuthenticatedClient, Client, models, types  # noqa: E402
from diffuser.api.images import edits, generations, variations  # noqa: E402
from diffuser.api.models import model as one_model, models as all_models  # noqa: E402
from diffuser.api.server import health, service_info  # noqa: E402

client = AuthenticatedClient(base_url=ORIGIN, token=API_KEY)


def file():
    return types.File(payload=io.BytesIO(png()), file_name="a.png", mime_type="image/png")


@check("what the server says of itself")
def _():
    expect(health.sync(client=client).status == "healthy", "health")
    expect(service_info.sync(client=client).model.id, "the service")
    name = all_models.sync(client=client).data[0].id
    expect(one_model.sync("qwen-image", client=client).id == name, name)


@check("edit with a form; nothing that the client fills in has a warning")
def _():
    reply = edits.sync(client=client, body=models.EditForm(image=[file()], prompt=PROMPT))
    expect_base64(reply.data[0].b64_json)
    expect(not reply.warnings, reply.warnings)


@check("edit with two pictures")
def _():
    reply = edits.sync_detailed(client=client, body=models.EditForm(image=[file(), file()], prompt=PROMPT))
    # The loaded model takes one.
    expect(reply.status_code == 400 and reply.parsed.error.param == "image", reply)


@check("generate")
def _():
    reply = generations.sync(client=client, body=models.GenerationJson(prompt=PROMPT, size=SIZE))
    expect_base64(reply.data[0].b64_json)
    expect(not reply.warnings, reply.warnings)


@check("vary, by address")
def _():
    by_url = models.VariationFormResponseFormat.URL
    reply = variations.sync(client=client, body=models.VariationForm(image=file(), response_format=by_url))
    expect_url(reply.data[0].url)


@check("an error")
def _():
    reply = generations.sync(client=client, body=models.GenerationJson(prompt=PROMPT, size="banana"))
    expect(reply.error.param == "size", reply)


@check("the document says that a key is needed, and where not")
def _():
    told = json.loads(document)
    expect({"bearer": []} in told["security"], told.get("security"))
    expect(told["paths"]["/health"]["get"]["security"] == [], "health")
    reply = edits.sync(client=Client(base_url=ORIGIN), body=models.EditForm(image=[file()], prompt=PROMPT))
    expect(reply.error.code == "invalid_api_key", reply)


finish()
