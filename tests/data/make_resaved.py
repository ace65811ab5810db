"""Saves every tiny checkpoint again, as people do who merge or fine-tune a model, and
keeps what that makes of its JSON files: resaved/transformers-VERSION.json.

    python tests/data/make_resaved.py [--pipelines FOLDER]

with diffusers 0.42.1 and transformers 5.23.0, then with transformers 4.57.6. (pip will not
have 4.57 beside diffusers 0.42: they disagree on huggingface_hub. Install 4.57 and its
tokenizers with --no-deps into a folder that comes first in the path, and loosen the entry of
huggingface-hub in its dependency_versions_table.py.)

The file has, for each checkpoint, each JSON or text file whose content differs from the
original's: its new content, or null if the new pipeline has no such file. Weights are not
kept: the tests lay the files over the original's. Tokenizers are large, and are kept for
some checkpoints only; the others keep their original ones.

--pipelines also leaves the pipelines themselves in FOLDER.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
TOKENIZERS_OF = {"qwen-image", "sdxl"}
TOKENIZER_FILES = {
    "added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
}
# What no loader reads, here or there.
UNREAD = {"chat_template.jinja", "generation_config.json", "video_preprocessor_config.json"}


def checkpoints():
    for folder in sorted((HERE / "fixtures/ckpt").iterdir()):
        yield folder.name, folder
    for name in ("sd", "sdxl"):
        yield name, HERE / "stable_diffusion" / name
    yield "demo", HERE.parents[1] / "assets/demo"


def texts(folder):
    """The content of each small file, by its path: a JSON value, or a string."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_index = name.endswith(".index.json") or "golden" in name or name == "diffuser.json"
        if path.suffix not in {".json", ".txt", ".jinja"} or is_index or path.name in UNREAD:
            continue
        text = path.read_text(encoding="utf-8")
        found[name] = json.loads(text) if path.suffix == ".json" else text
    return found


def readable(name, folder, scratch):
    """A copy of the original that this version of transformers can read."""
    copy = Path(scratch) / name
    shutil.copytree(folder, copy)
    if transformers.__version__ < "5":
        for path in copy.rglob("tokenizer_config.json"):
            config = json.loads(path.read_text())
            if isinstance(config.get("extra_special_tokens"), list):
                config["additional_special_tokens"] = config.pop("extra_special_tokens")
                path.write_text(json.dumps(config))
        for path in copy.glob("text_encoder*/model.safetensors"):
            tensors = load_file(path)
            if "embeddings.token_embedding.weight" in tensors:
                # It would take these newer names for strangers, and invent weights.
                renamed = {
                    name if name.startswith("text_projection") else f"text_model.{name}": tensor
                    for name, tensor in tensors.items()
                }
                save_file(renamed, path, metadata={"format": "pt"})
    return copy


def resave(name, folder, target):
    with tempfile.TemporaryDirectory() as scratch:
        source = readable(name, folder, scratch)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32)
        pipeline.save_pretrained(target)
    before, after = texts(folder), texts(target)
    changed = {}
    for path in sorted(before | after):
        if path.rsplit("/", 1)[-1] in TOKENIZER_FILES and name not in TOKENIZERS_OF:
            continue
        if before.get(path) != after.get(path):
            changed[path] = without_places(after.get(path), target)
    return changed


def without_places(value, target):
    """The same without the names of folders on this machine."""
    if isinstance(value, dict) and "_name_or_path" in value:
        value["_name_or_path"] = "/home/user/" + Path(value["_name_or_path"]).name
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipelines", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.pipelines or Path(scratch)
        changed = {name: resave(name, folder, out / name) for name, folder in checkpoints()}
    file = HERE / f"resaved/transformers-{transformers.__version__}.json"
    lines = (f'"{name}": {json.dumps(files, ensure_ascii=False)}' for name, files in changed.items())
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(file, file.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
