"""The tokenizer and the text encoder: trained to read an instruction.

The encoder is a `Qwen2_5_VLForConditionalGeneration`, small. It is trained, with
nothing but procedural prompts, so that at the last word of the pipeline's
template (`assistant`) its normalised hidden state holds a `Reading` of the
prompt as a linear function; `transformer.py` builds on that function. The
picture's tokens are zero: the last layer of the vision tower is zero.
"""

from __future__ import annotations

import json
import pathlib
import re
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import AddedToken, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

import instructions

SPECIAL = [f"<|{name}|>" for name in (
    "endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start",
    "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")]  # fmt: skip
# diffusers 0.42.1, QwenImageEditPipeline.prompt_template_encode.
TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, background), "
    "then explain how the user's text instruction should alter or modify the image. Generate a new image that meets the "
    "user's requirements while maintaining consistency with the original input where appropriate.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
)
DROPPED = 64  # tokens up to and including "user\n", which the pipeline drops
FIRST_IMAGE_TOKEN = DROPPED + 1
HIDDEN, LAYERS, HEAD = 128, 3, 64
# What marks a token for the transformer: the last word, and the start of the picture.
MARKS = ("assistant", "<|vision_start|>")


def build_tokenizer(folder: pathlib.Path) -> Qwen2Tokenizer:
    """Byte-level BPE that has every word of the instructions, in the files of the original.

    Files that are there already stay: an encoder in training knows their numbers.
    """
    if not (folder / "merges.txt").exists():
        _learn_words(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text(encoding="utf8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    qwen = Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=32768, padding_side="right")
    added = [AddedToken(word, special=True, normalized=False) for word in SPECIAL]
    qwen.add_special_tokens({"additional_special_tokens": added})
    qwen.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf8")
    ids = {word: qwen.convert_tokens_to_ids(word) for word in SPECIAL}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    before = len(qwen(TEMPLATE.split("<|vision_start|>")[0])["input_ids"])
    if before != DROPPED:
        raise ValueError(f"the template begins with {before} tokens, the pipeline drops {DROPPED}")
    return qwen


def _learn_words(folder: pathlib.Path) -> None:
    """Writes vocab.json and merges.txt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    template = [part for part in re.split(r"<\|[a-z_]+\|>|\{\}", TEMPLATE) if part]
    trainer = trainers.BpeTrainer(
        vocab_size=3000, min_frequency=2, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(template * 5 + instructions.corpus(), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))


def build_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """The class of the published text encoder, small; its picture tokens are zero."""
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=(len(tokenizer) + 15) // 16 * 16, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN,
            num_hidden_layers=LAYERS, num_attention_heads=HIDDEN // HEAD, num_key_value_heads=1,
            max_position_embeddings=32768, rms_norm_eps=1e-6, tie_word_embeddings=True, use_sliding_window=False,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 12, 12]),
            bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
        ),
        vision_config=dict(
            depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=HIDDEN, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2, window_size=112, fullatt_block_indexes=[0], tokens_per_second=2,
        ),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], tie_word_embeddings=True,
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        merger = encoder.model.visual.merger.mlp[2]
        merger.weight.zero_()
        merger.bias.zero_()
    return encoder


class Reader(nn.Module):
    """The linear function from a normalised hidden state to marks and reading."""

    def __init__(self) -> None:
        super().__init__()
        self.marks = nn.Linear(HIDDEN, len(MARKS))
        self.reading = nn.Linear(HIDDEN, instructions.READING_SIZE)


def normalised(hidden: torch.Tensor) -> torch.Tensor:
    """What the transformer's `txt_norm`, with weights of one, makes of hidden states."""
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6)


def hidden_states(encoder, ids: torch.Tensor, grid: tuple[int, int], flat_positions: bool) -> torch.Tensor:
    """The kept hidden states of prompts of equal template, padded on the right.

    `ids`: (batch, tokens) with rows · columns picture tokens. The dropped tokens
    are alike in all prompts and see nothing of them, so they are computed once.
    """
    batch, length = ids.shape
    model = encoder.model.language_model
    picture = grid[0] * grid[1]
    last = FIRST_IMAGE_TOKEN + picture
    embedded = model.embed_tokens(ids)
    zeros = torch.zeros_like(embedded[:, :picture])
    embedded = torch.cat([embedded[:, :FIRST_IMAGE_TOKEN], zeros, embedded[:, last:]], 1)
    positions = torch.arange(length).repeat(3, 1)
    if not flat_positions:
        positions[:, last:] += max(grid) - picture
        rows, columns = torch.arange(picture) // grid[1], torch.arange(picture) % grid[1]
        places = torch.stack([torch.zeros_like(rows), rows, columns])
        positions[:, FIRST_IMAGE_TOKEN:last] = FIRST_IMAGE_TOKEN + places
    positions = positions[:, None]
    before = model(
        inputs_embeds=embedded[:1, :DROPPED], position_ids=positions[:, :, :DROPPED], use_cache=True
    ).past_key_values
    for layer in before.layers:
        layer.keys, layer.values = layer.keys.expand(batch, -1, -1, -1), layer.values.expand(batch, -1, -1, -1)
    after = positions[:, :, DROPPED:].expand(3, batch, -1)
    return model(
        inputs_embeds=embedded[:, DROPPED:], position_ids=after, past_key_values=before, use_cache=True
    ).last_hidden_state


def tokenise(tokenizer: Qwen2Tokenizer, texts: list[str], picture_tokens: int) -> torch.Tensor:
    """Ids of filled templates, padded on the right."""
    pads = "<|image_pad|>" * picture_tokens
    rows = [tokenizer(TEMPLATE.format(text).replace("<|image_pad|>", pads))["input_ids"] for text in texts]
    padding = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    longest = max(map(len, rows))
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows])


def train(folder: pathlib.Path, minutes: float, device: str = "cpu", seed: int = 0, batch: int = 96) -> None:
    """Trains for `minutes` in all, from where it stopped last; saves `text_encoder.pt`."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(folder / "tokenizer")
    encoder, reader = build_encoder(tokenizer).to(device), Reader().to(device)
    model = encoder.model.language_model
    parameters = [*model.parameters(), *reader.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    averaged = [p.detach().clone() for p in parameters]
    step, spent, file = 0, 0.0, folder / "text_encoder.pt"
    if file.exists():
        state = torch.load(file, map_location=device)
        encoder.load_state_dict(state["live"])
        reader.load_state_dict(state["live_reader"])
        optimiser.load_state_dict(state["optimiser"])
        averaged, step, spent = [p.to(device) for p in state["averaged"]], state["step"], state["spent"]
    rng = np.random.default_rng([seed, step])
    assistant = tokenizer(TEMPLATE)["input_ids"][-2]
    vision_start = tokenizer.convert_tokens_to_ids("<|vision_start|>")
    started, saved = time.time(), time.time()

    def save() -> None:
        live, live_reader = encoder.state_dict(), reader.state_dict()
        state = dict(live={k: v.clone() for k, v in live.items()}, live_reader={k: v.clone() for k, v in live_reader.items()})
        kept = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, a in zip(parameters, averaged):
                p.copy_(a)
            state |= dict(encoder={k: v.clone() for k, v in live.items()}, reader={k: v.clone() for k, v in live_reader.items()})
            for p, k in zip(parameters, kept):
                p.copy_(k)
        state |= dict(optimiser=optimiser.state_dict(), averaged=averaged, step=step, spent=spent + time.time() - started)
        torch.save(state, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)

    while (share := (spent + time.time() - started) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * min(1, 0.02 + 1.6 * (1 - share))
        asked = [instructions.sample_any(rng) for _ in range(batch)]
        readings = [instruction.reading() for instruction in asked]
        grid = (2, 2) if rng.random() < 0.5 else tuple(rng.integers(1, 5, 2))
        ids = tokenise(tokenizer, [instruction.text for instruction in asked], grid[0] * grid[1]).to(device)
        hidden = normalised(hidden_states(encoder, ids, grid, flat_positions=rng.random() < 0.25))
        kept = ids[:, DROPPED:]
        ends = kept.shape[1] - 1 - (kept.flip(1) == assistant).int().argmax(1)  # the last such word
        reading = reader.reading(hidden[torch.arange(batch), ends])
        wanted = torch.tensor(np.stack([r.values for r in readings])).to(device)
        care = torch.tensor(np.stack([r.care for r in readings])).to(device)
        # A flag may be further out than 1: the transformer only asks on which side of 0 it is.
        flags = torch.arange(instructions.READING_SIZE, device=device) < len(instructions.FLAGS)
        beyond = flags & (reading.detach() * wanted > 1)
        loss = ((reading - wanted).square() * care * ~beyond).mean() * 4
        marks = reader.marks(hidden)
        at_end = F.one_hot(ends, kept.shape[1]).bool()
        is_marked = torch.stack([at_end, kept == vision_start], -1).float() * 2 - 1
        weight = torch.where(is_marked > 0, 6.0, 1.0)
        # Padding comes after the end and is never seen.
        seen = (torch.arange(kept.shape[1], device=device)[None] <= ends[:, None] + 1)[..., None]
        loss = loss + ((marks - is_marked).square() * weight * seen).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(averaged, parameters, 1 - min(0.995, step / (step + 10)))
        if step % 50 == 0:
            wrong = ((reading * wanted < 0.4) & flags & (care > 0)).any(1).float().mean()
            print(f"text step {step} minutes {share * minutes:.1f} loss {loss:.4f} misread {wrong:.3f}", flush=True)
        if time.time() - saved > 60:
            save()
            saved = time.time()
    save()
