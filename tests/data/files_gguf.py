"""GGUF files as city96's converter, stable-diffusion.cpp and llama.cpp write them, through the `gguf` package."""
import json, os

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, GGUFWriter, LlamaFileType
from gguf.quants import quantize

from files_blocks import PLAIN, SIMPLE, random_blocks

FILE_TYPES = {"F32": "ALL_F32", "Q3_K": "MOSTLY_Q3_K_M", "Q4_K": "MOSTLY_Q4_K_M", "Q5_K": "MOSTLY_Q5_K_M"}
BLOCK = "transformer_blocks."


def encoded(values, name, rng):
    """A matrix in a type: quantised by gguf where it can, else random blocks of the same spread."""
    if name in PLAIN + SIMPLE:
        return quantize(np.ascontiguousarray(values), Type[name])
    return random_blocks(name, *values.shape, float(values.std()), rng)


def fits(name, columns):
    return columns % GGML_QUANT_SIZES[Type[name]][0] == 0


def add(writer, name, values, stored, rng=None):
    values = values.float().numpy()
    if stored == "F32":
        return writer.add_tensor(name, values)
    if stored == "F16":
        return writer.add_tensor(name, values.astype(np.float16))
    writer.add_tensor(name, encoded(values, stored, rng), raw_dtype=Type[stored])


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def new(path, architecture):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return GGUFWriter(path, architecture)


# What llama-quantize takes where a row is no multiple of 256 elements (llama-quant.cpp).
FALLBACK = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def stored_type(name, shape, wanted):
    """city96's rule: one-dimensional tensors F32, top-level matrices BF16, matrices of blocks in the wanted type."""
    if len(shape) == 1:
        return "F32"
    if not name.startswith(BLOCK):
        return "BF16"
    return next(t for t in (wanted, FALLBACK.get(wanted), "F16") if t and fits(t, shape[1]))


def transformer(path, weights, wanted, seed):
    """One type wherever the rows divide."""
    writer = new(path, "qwen_image")
    writer.add_quantization_version(2)
    writer.add_file_type(LlamaFileType[FILE_TYPES.get(wanted, f"MOSTLY_{wanted}")])
    rng = np.random.default_rng(seed)
    for name, values in weights.items():
        add(writer, name, values, stored_type(name, values.shape, wanted), rng)
    finish(writer)


# A mix as of a Q4_K_M: more bits for the values of attention and the modulation; all types but the plain ones appear.
MIX = {"attn.to_q": "Q4_0", "attn.to_k": "Q4_1", "attn.to_v": "Q8_0", "attn.to_out.0": "Q5_0", "attn.add_q_proj": "Q5_1",
       "attn.add_k_proj": "IQ4_NL", "attn.add_v_proj": "F16", "attn.to_add_out": "Q4_0", "img_mlp.net.0.proj": "Q5_0",
       "img_mlp.net.2": "Q4_K", "txt_mlp.net.0.proj": "Q4_1", "txt_mlp.net.2": "Q6_K", "img_mod.1": "Q8_0",
       "txt_mod.1": "BF16"}


def mixed(path, weights, seed):
    """Prefixed, without an architecture, with the marker of 2511."""
    writer = new(path, "none")
    writer.kv_data[0].clear()
    rng = np.random.default_rng(seed)
    for name, values in weights.items():
        stored = "F32" if values.ndim == 1 else "F16" if not name.startswith(BLOCK) else MIX[name.split(".", 2)[2].rsplit(".", 1)[0]]
        add(writer, f"model.diffusion_model.{name}", values, stored, rng)
    writer.add_tensor("model.diffusion_model.__index_timestep_zero__", np.zeros(1, np.float32))
    finish(writer)


# ---- the text encoder as llama.cpp writes it ---------------------------------------------------------------------
TEXT = [("model.embed_tokens.", "token_embd."), ("model.norm.", "output_norm."), ("lm_head.", "output."),
        ("model.layers.", "blk."), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down")]
VISION = [("visual.blocks.", "v.blk."), ("norm1", "ln1"), ("norm2", "ln2"), ("attn.proj", "attn_out"),
          ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"),
          ("visual.merger.ln_q", "v.post_ln"), ("visual.merger.mlp.", "mm.")]


def renamed(name, pairs):
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name


def text_type(name, shape):
    if len(shape) == 1:
        return "F32"
    return "F16" if "attn_v" in name or name == "output.weight" else "Q8_0"


def add_tokenizer(writer, base):
    vocab = json.load(open(f"{base}/tokenizer/vocab.json"))
    added = json.load(open(f"{base}/tokenizer/added_tokens.json"))
    tokens = sorted({**vocab, **added}.items(), key=lambda pair: pair[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([3 if token in added else 1 for token, _ in tokens])
    merges = open(f"{base}/tokenizer/merges.txt", encoding="utf-8").read().splitlines()[1:]
    writer.add_token_merges(merges)
    writer.add_eos_token_id(added["<|im_end|>"])
    writer.add_pad_token_id(added["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


def add_text_sizes(writer, config):
    writer.add_type("model")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_sections([*config["rope_scaling"]["mrope_section"], 0])
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)


def text_encoder(path, weights, base):
    writer = new(path, "qwen2vl")
    add_text_sizes(writer, json.load(open(f"{base}/text_encoder/config.json")))
    add_tokenizer(writer, base)
    for name, values in weights.items():
        if not name.startswith("visual."):
            theirs = renamed(name, TEXT)
            add(writer, theirs, values, text_type(theirs, values.shape))
    finish(writer)


def text_only(path, weights, base):
    """A Qwen2.5 without sight: the file that users take by mistake. A few of its tensors are enough to tell."""
    writer = new(path, "qwen2")
    add_text_sizes(writer, json.load(open(f"{base}/text_encoder/config.json")))
    for name in ("model.norm.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.k_proj.bias"):
        theirs = renamed(name, TEXT)
        add(writer, theirs, weights[name], text_type(theirs, weights[name].shape))
    finish(writer)


def vision_tensors(weights):
    """(llama.cpp's name, values): q, k and v apart, the patch embedding as its two slices in time."""
    for name, values in weights.items():
        if "patch_embed.proj" in name:
            yield "v.patch_embd.weight", values[:, :, 0]
            yield "v.patch_embd.weight.1", values[:, :, 1]
        elif ".attn.qkv." in name:
            for letter, part in zip("qkv", values.chunk(3)):
                yield renamed(name, VISION).replace("attn.qkv", f"attn_{letter}"), part
        else:
            yield renamed(name, VISION), values


def mmproj(path, weights, base):
    config = json.load(open(f"{base}/text_encoder/config.json"))["vision_config"]
    processor = json.load(open(f"{base}/processor/preprocessor_config.json"))
    writer = new(path, "clip")
    writer.add_type("mmproj")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("qwen2.5vl_merger")
    writer.add_vision_projection_dim(config["out_hidden_size"])
    writer.add_vision_image_size(560)
    writer.add_vision_patch_size(config["patch_size"])
    writer.add_vision_embedding_length(config["hidden_size"])
    writer.add_vision_feed_forward_length(config["intermediate_size"])
    writer.add_vision_block_count(config["depth"])
    writer.add_vision_head_count(config["num_heads"])
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean(processor["image_mean"])
    writer.add_vision_image_std(processor["image_std"])
    writer.add_vision_use_silu(True)
    writer.add_vision_n_wa_pattern(config["fullatt_block_indexes"][0] + 1)
    vision = {k: v for k, v in weights.items() if k.startswith("visual.")}
    for name, values in vision_tensors(vision):
        add(writer, name, values, "F32" if values.ndim == 1 else "F16")
    finish(writer)


def unsupported(path):
    """A type that is not read (IQ2_XXS): refused by name."""
    writer = new(path, "qwen_image")
    writer.add_quantization_version(2)
    writer.add_file_type(LlamaFileType.MOSTLY_IQ2_XXS)
    writer.add_tensor("txt_norm.weight", np.ones(32, np.float32))
    writer.add_tensor("transformer_blocks.0.img_mlp.net.2.weight", np.zeros((64, 66), np.uint8), raw_dtype=Type.IQ2_XXS)
    finish(writer)
