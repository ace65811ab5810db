"""Token ids of prompts by transformers 5.23.0, as the pipelines of diffusers 0.42.1 ask for
them, whatever padding or cut a tokenizer.json remembers: token_ids.json.

    python tests/data/make_token_ids.py
"""

import json
import shutil
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer, Qwen2Tokenizer

HERE = Path(__file__).resolve().parent
RESAVED = json.loads((HERE / "resaved/transformers-5.23.0.json").read_text())
PROMPTS = [
    "",
    "a red boat on a quiet lake with two birds and a yellow lamp near the door of the house",
    "Stop! 12 red  BOATS, isn't it?",
    "<|endoftext|> is a word",
]
# What a call such as tokenizer(text, padding="max_length", max_length=9, truncation=True)
# leaves behind.
LEFT_BEHIND = {
    "truncation": {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
    },
}


def tokenizer(kind, checkpoint, folder, scratch):
    """The tokenizer of a checkpoint that was saved again after a call."""
    files = RESAVED[checkpoint]
    target = Path(scratch) / checkpoint / folder
    target.mkdir(parents=True, exist_ok=True)
    whole = dict(files[f"{folder}/tokenizer.json"], **LEFT_BEHIND)
    (target / "tokenizer.json").write_text(json.dumps(whole))
    config = files[f"{folder}/tokenizer_config.json"]
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return kind.from_pretrained(target)


def main():
    ids = {}
    with tempfile.TemporaryDirectory() as scratch:
        qwen = tokenizer(Qwen2Tokenizer, "qwen-image", "tokenizer", scratch)
        # QwenImagePipeline: 1024 tokens and those of its template.
        call = dict(max_length=1024 + 34, padding=True, truncation=True)
        ids["qwen-image/tokenizer"] = [qwen(text, **call).input_ids for text in PROMPTS]
        for folder in ("tokenizer", "tokenizer_2"):
            clip = tokenizer(CLIPTokenizer, "sdxl", folder, scratch)
            call = dict(max_length=clip.model_max_length, padding="max_length", truncation=True)
            ids[f"sdxl/{folder}"] = [clip(text, **call).input_ids for text in PROMPTS]
    golden = {"prompts": PROMPTS, "left_behind": LEFT_BEHIND, "ids": ids}
    (HERE / "token_ids.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
