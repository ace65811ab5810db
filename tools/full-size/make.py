#!/usr/bin/env python3
"""Makes a checkpoint with the names, shapes and files of a published model, in seconds.

Nearly all of it are holes in sparse files, which read as zeros and take no disk: of each
matrix only the first rows hold numbers, so that a picture is made of something. It is for
loading, memory and time at the real size, not for pictures to look at.

    python3 tools/full-size/make.py /tmp/full Qwen-Image-Edit
    python3 tools/full-size/make.py /tmp/part Qwen-Image-Edit 12     # 12 layers of each kind, at full width

The lists of tensors are those of tests/data/manifest-full; tokenizer, processor and scheduler
are the miniature's of the tests. Needs Python 3.9 and a file system with holes.
"""

import json
import math
import random
import shutil
import struct
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
MINIATURES = {
    "Qwen-Image": "qwen-image",
    "Qwen-Image-2512": "qwen-image",
    "Qwen-Image-Edit": "qwen-image-edit",
    "Qwen-Image-Edit-2509": "qwen-image-edit-plus",
    "Qwen-Image-Edit-2511": "qwen-image-edit-2511",
    "Qwen-Image-Layered": "qwen-image-layered",
}
# Rows of a matrix that hold numbers, and numbers up to which a tensor is filled.
ROWS = 16
SMALL = 200_000


def bfloat16(value):
    """The upper half of a 32-bit float."""
    return struct.pack("<f", value)[2:]


def numbers(count, scale, rng):
    """`count` numbers about 0, as bfloat16: some drawn, and those again and again."""
    drawn = b"".join(bfloat16(rng.gauss(0, scale)) for _ in range(min(count, 4099)))
    return (drawn * (count * 2 // len(drawn) + 1))[: count * 2]


def filling(name, shape, rng):
    """The first bytes of a tensor; the rest is a hole."""
    count = math.prod(shape)
    if len(shape) > 1 and count >= SMALL:
        return numbers(min(count, ROWS * shape[-1]), shape[-1] ** -0.5, rng)
    if ("norm" in name or name.endswith("gamma")) and not name.endswith("bias"):
        return bfloat16(1.0) * count
    return numbers(count, 0.02, rng)


def write_shard(path, tensors, rng):
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        data = file.tell()
        file.truncate(data + end)
        for name, shape in tensors.items():
            file.seek(data + header[name]["data_offsets"][0])
            file.write(filling(name, shape, rng))


def write_component(folder, manifest, rng):
    files = [file["name"] for file in manifest["files"]]
    shard_of = manifest.get("shard_of") or dict.fromkeys(manifest["tensors"], 1)
    for number, name in enumerate(files, 1):
        tensors = {key: shape for key, shape in manifest["tensors"].items() if shard_of[key] == number}
        write_shard(folder / name, tensors, rng)
    if "index_file" in manifest:
        places = {key: files[shard_of[key] - 1] for key in manifest["tensors"]}
        index = {"metadata": {"total_size": manifest["bytes"]}, "weight_map": places}
        (folder / manifest["index_file"]).write_text(json.dumps(index))


def configuration(component, manifest, miniature):
    """What `config.json` of a component says at the full size."""
    if component == "transformer":
        return {**miniature, **manifest["config"]}
    full = json.loads((DATA / "manifest-full" / f"{component}_config.json").read_text())
    if component == "text_encoder":
        # The tokenizer is the miniature's, and so are the tokens with a meaning.
        tokens = {key: value for key, value in miniature.items() if key.endswith("_token_id")}
        return {**full, **tokens}
    layered = {key: miniature[key] for key in ("input_channels",) if key in miniature}
    return {**full, **layered}


# Where the numbers of layers stand, and what their tensors' names begin with.
LAYERS = [
    ("transformer", ("num_layers",), "transformer_blocks."),
    ("text_encoder", ("num_hidden_layers",), "model.layers."),
    ("text_encoder", ("vision_config", "depth"), "visual.blocks."),
]


def shorten(manifest, configs, layers):
    """Leaves the first `layers` layers of each kind."""
    for component, keys, prefix in LAYERS:
        section = configs[component]
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = min(section[keys[-1]], layers)
        if "text_config" in configs[component] and keys == ("num_hidden_layers",):
            configs[component]["text_config"]["num_hidden_layers"] = section[keys[-1]]
        tensors = manifest[component]["tensors"]

        def stays(name):
            return not name.startswith(prefix) or int(name[len(prefix):].split(".")[0]) < layers

        manifest[component]["tensors"] = {name: shape for name, shape in tensors.items() if stays(name)}
    vision = configs["text_encoder"]["vision_config"]
    if "fullatt_block_indexes" in vision:
        vision["fullatt_block_indexes"] = [index for index in vision["fullatt_block_indexes"] if index < layers]


def main():
    out, model = Path(sys.argv[1]), sys.argv[2]
    layers = int(sys.argv[3]) if len(sys.argv) > 3 else None
    manifest = json.loads((DATA / "manifest-full" / f"{model}.json").read_text())
    miniature = DATA / "fixtures" / "ckpt" / MINIATURES[model]
    shutil.copytree(miniature, out, ignore=shutil.ignore_patterns("*.safetensors*", "diffuser.json"))
    rng = random.Random(1)
    components = ("text_encoder", "transformer", "vae")
    small = {name: json.loads((out / name / "config.json").read_text()) for name in components}
    configs = {name: configuration(name, manifest[name], small[name]) for name in components}
    if layers:
        shorten(manifest, configs, layers)
    for component in components:
        (out / component / "config.json").write_text(json.dumps(configs[component], indent=2))
        write_component(out / component, manifest[component], rng)
    files = [file.stat() for file in out.rglob("*") if file.is_file()]
    size, blocks = sum(file.st_size for file in files), sum(file.st_blocks for file in files)
    print(f"{out}: {size / 1e9:.1f} GB, of which {blocks * 512 / 1e6:.0f} MB are on the disk")


if __name__ == "__main__":
    main()
