"""The tokenizer and the text encoder: trained to read an instruction.

The encoder is a `Qwen2_5_VLForConditionalGeneration`, small. It is trained, with
nothing but procedural prompts and pictures, so that at the last word of the pipeline's
template (`assistant`) its normalised hidden state holds a `Reading` of the
prompt as a linear function; `transformer.py` builds on that function. Which
colour "the circle" has, it reads in the picture, which it is shown by `eyes.py`.
"""

from __future__ import annotations

import dataclasses
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

import eyes
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
EYE_HIDDEN, EYE_BLOCKS = 64, 3
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
    """The class of the published text encoder, small."""
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
            depth=EYE_BLOCKS, hidden_size=EYE_HIDDEN, intermediate_size=2 * EYE_HIDDEN, num_heads=4, out_hidden_size=HIDDEN,
            patch_size=eyes.PATCH, spatial_merge_size=eyes.MERGE, temporal_patch_size=2, window_size=112,
            fullatt_block_indexes=list(range(EYE_BLOCKS)), tokens_per_second=2,
        ),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], tie_word_embeddings=True,
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    eyes.prepare(encoder.model.visual)
    with torch.no_grad():
        for linear in [m for m in encoder.model.language_model.modules() if isinstance(m, nn.Linear)]:
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.normal_(encoder.model.language_model.embed_tokens.weight, std=0.3)
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


def hidden_states(encoder, ids: torch.Tensor, picture: torch.Tensor, grid: tuple[int, int], flat_positions: bool) -> torch.Tensor:
    """The kept hidden states of prompts of equal template, padded on the right.

    `ids`: (batch, tokens) with rows · columns picture tokens, whose embeddings are
    `picture`. The dropped tokens are alike in all prompts and see nothing of them,
    so they are computed once.
    """
    batch, length = ids.shape
    model = encoder.model.language_model
    last = FIRST_IMAGE_TOKEN + picture.shape[1]
    embedded = model.embed_tokens(ids)
    embedded = torch.cat([embedded[:, :FIRST_IMAGE_TOKEN], picture, embedded[:, last:]], 1)
    positions = torch.arange(length, device=ids.device).repeat(3, 1)
    if not flat_positions:
        rows, columns = torch.meshgrid(*(torch.arange(side, device=ids.device) for side in grid), indexing="ij")
        positions[:, last:] += max(grid) - picture.shape[1]
        places = torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1)
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
    before, after = TEMPLATE.split("<|image_pad|>")
    before = tokenizer(before)["input_ids"] + [tokenizer.convert_tokens_to_ids("<|image_pad|>")] * picture_tokens
    rows = [before + tokenizer(after.format(text))["input_ids"] for text in texts]
    padding = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    longest = max(map(len, rows))
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows])


@dataclasses.dataclass
class Lesson:
    """Prompts about pictures: `shown[i]` is the picture of prompt i."""

    views: eyes.Views
    grid: tuple[int, int]
    shown: torch.Tensor
    ids: torch.Tensor
    readings: list[instructions.Reading]

    def to(self, device: str) -> "Lesson":
        """The lesson with its tensors on a device."""
        return dataclasses.replace(self, views=self.views.to(device), shown=self.shown.to(device), ids=self.ids.to(device))


def random_lesson(rng: np.random.Generator, tokenizer: Qwen2Tokenizer, bank: np.ndarray, pictures_shown: int) -> Lesson:
    """Four prompts about each of some pictures, a third of these photo-like."""
    grid = eyes.random_grid(rng)
    views = eyes.random_views(rng, bank, grid, rng.random(pictures_shown) < 0.35)
    shown = np.repeat(np.arange(pictures_shown), 4)
    asked = [instructions.sample_any(rng, views.scenes[i]) for i in shown]
    readings = [instruction.reading(views.scenes[i]) for i, instruction in zip(shown, asked)]
    ids = tokenise(tokenizer, [instruction.text for instruction in asked], grid[0] * grid[1])
    return Lesson(views, grid, torch.from_numpy(shown), ids, readings)


class Pupil(nn.Module):
    """All that is trained: the encoder with its eyes, and the linear functions of its states."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        super().__init__()
        self.encoder, self.reader = build_encoder(tokenizer), Reader()
        self.sight = eyes.Sight(self.encoder.model.visual, HIDDEN)
        token = tokenizer.convert_tokens_to_ids
        self.assistant, self.vision_start = tokenizer(TEMPLATE)["input_ids"][-2], token("<|vision_start|>")

    def loss(self, lesson: Lesson, flat_positions: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """What is to become small, and the share of prompts with a wrong flag."""
        ids, batch = lesson.ids, len(lesson.ids)
        seen, states = eyes.see(self.encoder.model.visual, lesson.views.pixels)
        hidden = normalised(hidden_states(self.encoder, ids, seen[lesson.shown], lesson.grid, flat_positions))
        kept = ids[:, DROPPED:]
        ends = kept.shape[1] - 1 - (kept.flip(1) == self.assistant).int().argmax(1)  # the last such word
        reading = self.reader.reading(hidden[torch.arange(batch), ends])
        of_reading, misread = _reading_loss(reading, lesson.readings)
        of_marks = self._marks_loss(hidden, kept, ends)
        return of_reading + of_marks + 0.1 * self.sight.loss(seen, states, lesson.views), misread

    def _marks_loss(self, hidden: torch.Tensor, kept: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        at_end = F.one_hot(ends, kept.shape[1]).bool()
        is_marked = torch.stack([at_end, kept == self.vision_start], -1).float() * 2 - 1
        weight = torch.where(is_marked > 0, 6.0, 1.0)
        # Padding comes after the end and is never seen.
        within = (torch.arange(kept.shape[1], device=kept.device)[None] <= ends[:, None] + 1)[..., None]
        return ((self.reader.marks(hidden) - is_marked).square() * weight * within).mean()


def _reading_loss(reading: torch.Tensor, wanted: list[instructions.Reading]) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.tensor(np.stack([r.values for r in wanted]), device=reading.device)
    care = torch.tensor(np.stack([r.care for r in wanted]), device=reading.device)
    # A flag may be further out than 1: the transformer only asks on which side of 0 it is.
    flags = torch.arange(instructions.READING_SIZE, device=reading.device) < len(instructions.FLAGS)
    beyond = flags & (reading.detach() * values > 1)
    misread = ((reading.detach() * values < 0.4) & flags & (care > 0)).any(1).float().mean()
    return ((reading - values).square() * care * ~beyond).mean() * 4, misread


def train(
    folder: pathlib.Path, minutes: float, eye_minutes: float, device: str = "cpu", seed: int = 0, pictures_shown: int = 24
) -> None:
    """Trains the eyes, then all for `minutes`, from where it stopped last; saves `text_encoder.pt`."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(folder / "tokenizer")
    pupil = Pupil(tokenizer).to(device)
    tower, file = pupil.encoder.model.visual, folder / "text_encoder.pt"
    if not file.exists():
        eyes.train(folder, eye_minutes, tower, HIDDEN, device, seed)
    state = torch.load(folder / "eyes.pt", map_location=device)
    tower.load_state_dict(state["tower"])
    pupil.sight.load_state_dict(state["sight"])
    parameters = list(pupil.parameters())
    language = pupil.encoder.model.language_model
    optimisers = [
        *eyes.optimisers_of(language.layers, [*language.parameters(), *pupil.reader.parameters()]),
        *eyes.optimisers_of(tower.blocks, [*tower.parameters(), *pupil.sight.parameters()], rate=0.2),
    ]
    averaged = {name: value.detach().clone() for name, value in pupil.state_dict().items()}
    step, spent = 0, 0.0
    if file.exists():
        state = torch.load(file, map_location=device)
        pupil.load_state_dict(state["live"])
        for optimiser, kept in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(kept)
        averaged, step, spent = state["averaged"], state["step"], state["spent"]
    rng = np.random.default_rng([seed, step, 9])
    bank = eyes.photo_bank(folder / "photos.npy", seed)
    started, saved, shown = time.time(), time.time(), []

    def save() -> None:
        state = dict(live=pupil.state_dict(), averaged=averaged, step=step, spent=spent + time.time() - started)
        torch.save(state | dict(optimisers=[o.state_dict() for o in optimisers]), file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)

    while (share := (spent + time.time() - started) / (60 * minutes)) < 1:
        eyes.set_rates(optimisers, min(1, (step + 1) / 100) * min(1, 0.02 + 1.6 * (1 - share)))
        lesson = random_lesson(rng, tokenizer, bank, pictures_shown)
        loss, misread = pupil.loss(lesson.to(device), flat_positions=rng.random() < 0.3)
        eyes.descend(loss, parameters, optimisers)
        step += 1
        with torch.no_grad():
            live = pupil.state_dict()
            torch._foreach_lerp_([averaged[name] for name in live], list(live.values()), 1 - min(0.995, step / (step + 10)))
        shown.append((loss.item(), misread.item()))
        if step % 50 == 0:
            losses = np.mean(shown[-50:], 0)
            print(f"text step {step} minutes {share * minutes:.1f} loss {losses[0]:.4f} misread {losses[1]:.3f}", flush=True)
        if time.time() - saved > 60:
            save()
            saved = time.time()
    save()


def load_trained(folder: pathlib.Path) -> Pupil:
    """What `train` saved, with its averaged weights."""
    pupil = Pupil(build_tokenizer(folder / "tokenizer"))
    pupil.load_state_dict(torch.load(folder / "text_encoder.pt", map_location="cpu")["averaged"])
    return pupil.eval()
