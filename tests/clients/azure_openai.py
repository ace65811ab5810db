"""`AzureOpenAI` of the package openai, in the ways to set it up that its documentation has."""

import asyncio
import io

import openai
from openai import AsyncAzureOpenAI, AzureOpenAI, OpenAI

from checks import API_KEY, MODEL, ORIGIN, PROMPT, SIZE, check, expect, expect_base64, expect_url, finish, png

VERSION = "2025-04-01-preview"


def client(**settings):
    settings = {"api_key": API_KEY, "api_version": VERSION, "max_retries": 0, **settings}
    return AzureOpenAI(**settings)


by_endpoint = client(azure_endpoint=ORIGIN)
by_deployment = client(azure_endpoint=ORIGIN, azure_deployment=MODEL)


@check("generate, the model as deployment")
def _():
    expect_base64(by_endpoint.images.generate(model=MODEL, prompt=PROMPT, size=SIZE).data[0].b64_json)


@check("edit, the model as deployment")
def _():
    expect_base64(by_endpoint.images.edit(model=MODEL, prompt=PROMPT, image=png()).data[0].b64_json)


@check("generate and edit, no model at all")
def _():
    expect_base64(by_endpoint.images.generate(prompt=PROMPT, size=SIZE).data[0].b64_json)
    expect_base64(by_endpoint.images.edit(prompt=PROMPT, image=png()).data[0].b64_json)


@check("generate and edit, the client with a deployment")
def _():
    expect_base64(by_deployment.images.generate(model="whatever", prompt=PROMPT, size=SIZE).data[0].b64_json)
    expect_base64(by_deployment.images.edit(prompt=PROMPT, image=[png(), png(shade=90)][:1]).data[0].b64_json)


@check("variation")
def _():
    for azure in (by_endpoint, by_deployment):
        expect_base64(azure.images.create_variation(image=png(), size=SIZE).data[0].b64_json)


@check("names with a slash and with blanks")
def _():
    model = by_endpoint.models.list().data[0].id
    expect_base64(by_endpoint.images.edit(model=model, prompt=PROMPT, image=png()).data[0].b64_json)
    try:
        by_endpoint.images.edit(model="my own/deployment", prompt=PROMPT, image=png())
    except openai.NotFoundError as error:
        expect(error.code == "model_not_found" and "'my own/deployment'" in error.message, error.message)
    else:
        raise AssertionError("it should be unknown")


@check("models")
def _():
    for azure in (by_endpoint, by_deployment):
        names = [model.id for model in azure.models.list().data]
        expect(MODEL in names, names)
        expect(azure.models.retrieve(names[0]).id == names[0], names[0])


@check("stream")
def _():
    events = by_endpoint.images.edit(model=MODEL, prompt=PROMPT, image=png(), stream=True, partial_images=1)
    kinds = [event.type for event in events]
    expect(kinds[-1] == "image_edit.completed", kinds)


@check("dall-e-3 by address")
def _():
    expect_url(by_endpoint.images.generate(model="dall-e-3", prompt=PROMPT, size=SIZE).data[0].url)


@check("a wrong key, with a large picture")
def _():
    wrong = client(azure_endpoint=ORIGIN, api_key="wrong")
    for size in (1 << 10, 49 << 20):
        try:
            wrong.images.edit(model=MODEL, prompt=PROMPT, image=io.BytesIO(bytes(size)))
        except openai.AuthenticationError as error:
            expect("api-key" in error.message, error.message)
        else:
            raise AssertionError("it should be refused")


@check("chat")
def _():
    try:
        by_endpoint.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    except openai.NotFoundError as error:
        expect(f"{ORIGIN}/v1" in error.message, error.message)
    else:
        raise AssertionError("there is none")


@check("the v1 address, with OpenAI's own class")
def _():
    plain = OpenAI(base_url=f"{ORIGIN}/openai/v1/", api_key=API_KEY, default_query={"api-version": "preview"})
    expect_base64(plain.images.edit(model=MODEL, prompt=PROMPT, image=png()).data[0].b64_json)


@check("asynchronous, with a token of Entra's in the place of the key")
def _():
    async def edit():
        azure = AsyncAzureOpenAI(azure_endpoint=ORIGIN, azure_ad_token=API_KEY, api_version=VERSION)
        return await azure.images.edit(model=MODEL, prompt=PROMPT, image=png())

    expect_base64(asyncio.run(edit()).data[0].b64_json)


finish()
