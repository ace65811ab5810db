"""LangChain's DallEAPIWrapper, which reads addresses and nothing else."""

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

from checks import API_KEY, ORIGIN, PROMPT, SIZE, check, expect, expect_url, finish


def wrapper(**settings):
    return DallEAPIWrapper(api_key=API_KEY, base_url=f"{ORIGIN}/v1", size=SIZE, **settings)


@check("as it comes")
def _():
    expect_url(wrapper().run(PROMPT))


@check("dall-e-3, with a quality")
def _():
    expect_url(wrapper(model="dall-e-3", quality="hd").run(PROMPT))


@check("several")
def _():
    urls = wrapper(n=2).run(PROMPT).split("\n")
    expect(len(urls) == 2, urls)
    for url in urls:
        expect_url(url)


finish()
