#!/usr/bin/env python3
"""Writes a checkpoint with published shapes and random bfloat16 numbers, to measure loading with.

    python tools/bench/make_random_checkpoint.py /tmp/random-edit --layers 4 --text-layers 4

The shapes are those of the published list of Qwen/Qwen-Image-Edit (tests/data/manifest-full),
cut down to the given numbers of layers; the tokenizer is the miniature's.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shutil

import torch
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/data"
MINIATURE = DATA / "fixtures/ckpt/qwen-image-edit"
FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
LAYER = {
    "transformer": re.compile(r"^transformer_blocks\.(\d+)\."),
    "text_encoder": re.compile(r"^model\.layers\.(\d+)\."),
    "vae": re.compile(r"^never(\d+)"),
}


def image_token() -> int:
    """The number of the miniature tokenizer's placeholder for a picture."""
    tokenizer = json.loads((MINIATURE / "processor/tokenizer.json").read_text())
    return next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|image_pad|>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=4, help="blocks of the transformer, at most 60")
    parser.add_argument("--text-layers", type=int, default=4, help="layers of the language model, at most 28")
    options = parser.parse_args()
    manifest = json.loads((DATA / "manifest-full/Qwen-Image-Edit.json").read_text())
    kept = {"transformer": options.layers, "text_encoder": options.text_layers, "vae": 0}
    configs = {
        "transformer": manifest["transformer"]["config"] | {"num_layers": options.layers},
        "vae": json.loads((DATA / "manifest-full/vae_config.json").read_text()),
        "text_encoder": json.loads((DATA / "manifest-full/text_encoder_config.json").read_text())
        | {"num_hidden_layers": options.text_layers, "image_token_id": image_token()},
    }
    for component, config in configs.items():
        folder = options.folder / component
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        tensors = {}
        for name, shape in manifest[component]["tensors"].items():
            layer = LAYER[component].match(name)
            if not layer or int(layer[1]) < kept[component]:
                # A float that is drawn at random is the same work to load as any other.
                tensors[name] = torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.03, 0.03)
        save_file(tensors, folder / FILES[component])
        print(component, sum(tensor.nbytes for tensor in tensors.values()) / 1e9, "GB")
    for part in ("processor", "scheduler"):
        shutil.copytree(MINIATURE / part, options.folder / part, dirs_exist_ok=True)
    shutil.copy(MINIATURE / "model_index.json", options.folder)


if __name__ == "__main__":
    main()
