#!/usr/bin/env python3
"""Writes manifest-files/: names, shapes and stored types of full-size files that users have, without any weights.

    python make_manifest_files.py

Made by rule from manifest-full/Qwen-Image-Edit-2511.json; no such file was read. A manifest is

    {"format": "gguf" or "safetensors", "metadata": {...}, "tensors": {"TYPE 3072x64": [names], ...}}

with shapes in the order of safetensors (a GGUF stores them reversed); "TYPE" alone is a scalar and "TYPE 0" an empty
tensor. What is known and what was chosen:

* Both GGUF transformers have the counts that users' logs show: 1087 F32, 6 BF16, and 840 Q8_0, or 258 Q6_K, 2 Q8_0,
  20 Q5_K and 560 Q4_K. Which matrices of a Q4_K_M have which type was chosen to give these counts; neither has a marker.
* The fp8_scaled text encoder has 358 scales, its head and embeddings bf16 (together the published 9.4 GB).
* The fp8mixed transformer has all matrices of blocks in e4m3 (the published 20.5 GB); that the second matrices of the
  MLPs have scales by row was chosen. The header's `_quantization_metadata` names each layer that has a `weight_scale`.
* llama.cpp's Q4_K_M takes Q6_K for the head and, in the layers to which llama-quant.cpp gives more bits, for
  `attn_v` and `ffn_down`.
"""
import json, math, pathlib
from collections import Counter

import files_comfy, files_gguf

HERE = pathlib.Path(__file__).parent
FULL = json.loads((HERE / "manifest-full" / "Qwen-Image-Edit-2511.json").read_text())
BITS = {"F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q4_K": 4.5}
BLOCK = "transformer_blocks."
BLOCKS = 60


def write(name, tensors, metadata=None):
    """`tensors`: (name, type, shape)."""
    groups = {}
    for tensor, stored, shape in tensors:
        groups.setdefault(" ".join([stored, "x".join(map(str, shape))]).strip(), []).append(tensor)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(names, separators=(',', ':'))}" for key, names in groups.items())
    kind = "gguf" if name.endswith(".gguf") else "safetensors"
    head = f'{{"format": "{kind}", "metadata": {json.dumps(metadata or {})}, "tensors": {{\n'
    (HERE / "manifest-files").mkdir(exist_ok=True)
    (HERE / "manifest-files" / f"{name}.json").write_text(f"{head}{lines}\n}}}}\n")
    size = sum(math.prod(shape) * BITS[stored] / 8 for _, stored, shape in tensors)
    print(f"{name:45} {len(tensors):5} tensors {size / 1e9:6.2f} GB {dict(Counter(stored for _, stored, _ in tensors))}")


def of(part):
    return FULL[part]["tensors"].items()


def is_block_matrix(name, shape):
    return name.startswith(BLOCK) and len(shape) == 2


# ---- transformers --------------------------------------------------------------------------------------------------
ALWAYS_MORE = ("attn.to_v.weight", "attn.add_v_proj.weight", "img_mod.1.weight", "txt_mod.1.weight")


def q4_k_m(name):
    _, index, inner = name.split(".", 2)
    if int(index) in (0, BLOCKS - 1):
        return "Q8_0" if inner == "txt_mod.1.weight" else "Q6_K" if inner in ALWAYS_MORE else "Q5_K"
    more = inner in ALWAYS_MORE or inner == "img_mlp.net.2.weight" and int(index) % 3 == 1
    return "Q6_K" if more else "Q4_K"


def gguf_transformer(file_type, type_of):
    tensors = [(name, "F32" if len(shape) == 1 else type_of(name) if is_block_matrix(name, shape) else "BF16", shape)
               for name, shape in of("transformer")]
    return tensors, {"general.architecture": "qwen_image", "general.quantization_version": 2, "general.file_type": file_type}


def fp8_mixed():
    for name, shape in of("transformer"):
        yield name, "F8_E4M3" if is_block_matrix(name, shape) else "BF16", shape
        if is_block_matrix(name, shape):
            yield f"{name.removesuffix('.weight')}.weight_scale", "F32", [shape[0], 1] if "_mlp.net.2." in name else []
    yield "__index_timestep_zero__", "F32", []


# ---- text encoder --------------------------------------------------------------------------------------------------
def is_text_linear(name, shape):
    return len(shape) == 2 and "embed_tokens" not in name and not name.startswith("lm_head")


def fp8_scaled():
    yield "scaled_fp8", "F8_E4M3", [0]
    for name, shape in of("text_encoder"):
        yield name, "F8_E4M3" if is_text_linear(name, shape) else "BF16", shape
        if is_text_linear(name, shape):
            yield f"{name.removesuffix('.weight')}.scale_weight", "F32", []
            yield f"{name.removesuffix('.weight')}.scale_input", "F32", []


def more_bits(index, layers):
    return index < layers // 8 or index >= 7 * layers // 8 or (index - layers // 8) % 3 == 2


def llama_type(name, shape):
    if len(shape) == 1:
        return "F32"
    if name == "output.weight":
        return "Q6_K"
    raised = ("attn_v" in name or "ffn_down" in name) and more_bits(int(name.split(".")[1]), 28)
    return "Q6_K" if raised else "Q4_K"


def llama():
    for name, shape in of("text_encoder"):
        if not name.startswith("visual."):
            theirs = files_gguf.renamed(name, files_gguf.TEXT)
            yield theirs, llama_type(theirs, shape), shape


def mmproj():
    stored = lambda shape: "F32" if len(shape) == 1 else "F16"
    for name, shape in of("text_encoder"):
        theirs = files_gguf.renamed(name, files_gguf.VISION)
        if "patch_embed.proj" in name:
            for end in ("", ".1"):
                yield f"v.patch_embd.weight{end}", "F16", [*shape[:2], *shape[3:]]
        elif ".attn.qkv." in name:
            for letter in "qkv":
                yield theirs.replace("attn.qkv", f"attn_{letter}"), stored(shape), [shape[0] // 3, *shape[1:]]
        elif name.startswith("visual."):
            yield theirs, stored(shape), shape


LLAMA = {"general.architecture": "qwen2vl", "general.type": "model", "general.file_type": 15, "qwen2vl.block_count": 28,
         "qwen2vl.embedding_length": 3584, "qwen2vl.feed_forward_length": 18944, "qwen2vl.attention.head_count": 28,
         "qwen2vl.attention.head_count_kv": 4}
MMPROJ = {"general.architecture": "clip", "general.type": "mmproj", "general.file_type": 1, "clip.has_vision_encoder": True,
          "clip.projector_type": "qwen2.5vl_merger", "clip.use_silu": True, "clip.vision.n_wa_pattern": 8,
          "clip.vision.patch_size": 14, "clip.vision.block_count": 32, "clip.vision.embedding_length": 1280}


def main():
    write("qwen-image-edit-2511-Q4_K_M.gguf", *gguf_transformer(15, q4_k_m))
    write("qwen-image-edit-2511-Q8_0.gguf", *gguf_transformer(7, lambda _: "Q8_0"))
    bf16 = [(name, "BF16", shape) for name, shape in of("transformer")]
    write("qwen_image_edit_2511_bf16.safetensors", [*bf16, ("__index_timestep_zero__", "BF16", [0])])
    write("qwen_image_edit_2511_fp8mixed.safetensors", list(fp8_mixed()))
    write("qwen_2.5_vl_7b_fp8_scaled.safetensors", list(fp8_scaled()))
    write("qwen_image_vae.safetensors", [(files_comfy.wan_name(name), "BF16", shape) for name, shape in of("vae")])
    write("Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", list(llama()), LLAMA)
    write("mmproj-F16.gguf", list(mmproj()), MMPROJ)


if __name__ == "__main__":
    main()
