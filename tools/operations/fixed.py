"""Requests whose pictures must be the same to the bit, whatever a server has been through."""

import client

SEED = 1234


def edit(port: int, model: str, timeout_s=client.TIMEOUT_S) -> client.Answer:
    fields = {"model": model, "prompt": "make it sepia", "size": "128x128", "num_inference_steps": 2, "seed": SEED}
    return client.post_form(port, "/v1/images/edits", fields, [("image", client.picture())], timeout_s)


def generation(port: int, model: str, timeout_s=client.TIMEOUT_S) -> client.Answer:
    fields = {"model": model, "prompt": "a fox", "size": "64x64", "num_inference_steps": 2, "seed": SEED}
    return client.post_json(port, "/v1/images/generations", fields, timeout_s)


def pictures(port: int, editing, generating=()) -> dict:
    """A picture of each model."""
    made = {model: edit(port, model).picture() for model in editing}
    return made | {model: generation(port, model).picture() for model in generating}
