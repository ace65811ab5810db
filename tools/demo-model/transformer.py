"""The transformer: its weights are written down, not trained.

What an edit needs is put into the layers of `QwenImageTransformer2DModel` by
hand. An image token of the picture in the making carries, side by side:

    NOISY    the noisy latents themselves, untouched to the end
    CLEAN    the answer: fetched from the same place of the given picture, then
             changed by the blocks as the instruction says
    MOVED    what other places of the given picture contribute (mirror, blur); or,
             of each of the token's pixels, how far its colour is from the one that
             is replaced, and how far it is outside the shape that is drawn
    FLAGS    what the instruction asks for, each exactly 0 or 1
    COLUMN, ROW    where the token is, counted from the picture's middle
    FOUND    the middle of the shape that is resized, and how large it is

and the model's output is (NOISY - CLEAN) / noise level, which is the flow that
leads to CLEAN. The means are these:

* A pair of opposite, large constant channels makes LayerNorm a mere factor,
  which the modulation undoes; another channel keeps the mean at zero.
* Rotary positions: constant queries and keys make a score a function of the
  distance alone, so a head can fetch from the same place, or average around it.
* A head whose only possible key is one word of the prompt fetches the reading.
* A head that chooses between the token itself and one word, whose score falls with
  the distance to it, measures where the token is: the share of the word says so.
* A head whose keys are large where a pixel's colour is the replaced one averages
  places over a shape; the share of a constant key beside these says how many they are.
* Circle, square and triangle are what lies inside all of some straight lines.
* gelu(x + K) - K = x and gelu(x - K) = 0 for |x| < K - 5: a hidden unit is
  switched by a flag.
* gelu(x) + gelu(-x) is close to a square for small x, and squares make products.

Linear maps between tokens are fitted by least squares where the autoencoder's
overlapping filters make them inexact.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

import instructions
import pictures
import text_encoder
from autoencoder import Z_DIM

HEADS, HEAD = 4, 48
WIDTH = HEADS * HEAD
AXES = (8, 20, 20)
BLOCKS = 4
TOKEN = 4 * Z_DIM  # numbers of a token: 3 planes of 16
PLANE = TOKEN // 3

FLAG_COUNT = len(instructions.FLAGS)
NOISY, CLEAN, MOVED = slice(0, 48), slice(48, 96), slice(96, 144)
PLUS, MINUS = 144, 145
FLAGS = slice(146, 146 + FLAG_COUNT)
ASIDE = slice(FLAGS.stop, FLAGS.stop + 2)  # of what is drawn: left (-1) to right, top to bottom
COLUMN_AT, ROW_AT = 171, 172
REPLACED, COLOUR, CORNER = slice(173, 176), slice(176, 179), slice(179, 182)
PLACE = slice(182, 190)  # cosines, then sines, of (2 · column + 1) · frequency; until block 1
FOUND = slice(182, 186)  # from block 2 on: column, row, shares that tell the size if bigger, if smaller
CHANGE = slice(186, 189)  # from block 1 on: the new colour less the replaced one
BALANCE = 191  # less the sum of all others, for LayerNorm takes off the mean
# In MOVED, when that is not in use.
RAW_FLAGS = slice(96, 96 + FLAG_COUNT)
RAW_ASIDE, CODE = (slice(RAW_FLAGS.stop + i, RAW_FLAGS.stop + i + 2) for i in (0, 2))
MASK, OUTSIDE = slice(96, 112), slice(112, 128)

# Channels of the text stream.
T_READING = slice(0, instructions.READING_SIZE)
T_MARKS = slice(32, 34)
T_CORNER = slice(34, 37)
T_PLUS, T_MINUS, T_BALANCE = 38, 39, 40

CONSTANT = 4096.0
UNDO = CONSTANT * math.sqrt(2 / WIDTH)  # what LayerNorm divides by
SWITCH = 32.0  # K above

# Rotary pairs of a head: of the frame, the row, the column; their frequencies fall.
FRAME, ROW, COLUMN = 0, AXES[0] // 2, (AXES[0] + AXES[1]) // 2
SLOW, QUERY_REST, KEY_REST, IN_MASK = ROW + 9, COLUMN + 8, ROW + 8, COLUMN + 9  # too slow to notice places
FREQUENCIES = [10000 ** (-2 * i / AXES[1]) for i in range(AXES[1] // 2)]
NORM_WEIGHT = 16.0
PLACE_SCORES = (40, 30, 30, 30)  # of the fastest frequencies, to find a place
FULL_SCORE = NORM_WEIGHT**2 * math.sqrt(HEAD)  # of a query and a key that agree wholly


class Pattern:
    """A constant query or key, as amplitudes and phases of rotary pairs.

    A query of amplitude a and a key of amplitude b at a pair of frequency f add
    FULL_SCORE · a · b · cos(f · (query place - key place) + phase) to the score.
    `rest` fills the pattern up to length 1 in a pair that the other side leaves
    empty, because the norm of queries and keys scales every one to that length.
    """

    def __init__(self, rest: int) -> None:
        self.pairs: dict[int, complex] = {}
        self.rest = rest

    def add(self, pair: int, score: float, phase: float = 0.0) -> "Pattern":
        """Adds the amplitude that reaches `score` with a like one on the other side."""
        amplitude = math.sqrt(abs(score) / FULL_SCORE) * (1 if score > 0 else -1)
        self.pairs[pair] = amplitude * complex(math.cos(phase), math.sin(phase))
        return self

    def only_here(self, pair: int, score: float, other: float) -> "Pattern":
        """Adds the amplitude that reaches `score` with amplitude `other` on the other side."""
        self.pairs[pair] = complex(score / FULL_SCORE / other)
        return self

    def vector(self) -> torch.Tensor:
        values = torch.zeros(HEAD)
        left = 1 - sum(abs(a) ** 2 for a in self.pairs.values())
        assert left >= 0, f"scores are too high: {left}"
        for pair, amplitude in [*self.pairs.items(), (self.rest, complex(math.sqrt(left)))]:
            values[2 * pair], values[2 * pair + 1] = amplitude.real, amplitude.imag
        return values


class HiddenUnits:
    """Collects the hidden units of one feed-forward layer of the image stream."""

    def __init__(self) -> None:
        self.rows: list[tuple[torch.Tensor, float, torch.Tensor]] = []
        self.offset = torch.zeros(WIDTH)

    def add(self, reads: dict[int, float], bias: float, writes: dict[int, float]) -> None:
        """One unit: writes[d] · gelu(sum of reads[c] · channel c + bias) to channels d."""
        row, column = torch.zeros(WIDTH), torch.zeros(WIDTH)
        for channel, weight in reads.items():
            row[channel] += weight
        for channel, weight in writes.items():
            column[channel] += weight
        self.rows.append((row, bias, column))

    def linear(
        self, matrix: np.ndarray, reads: slice, writes: slice, flag: int | None, offset=None, values: np.ndarray | None = None
    ) -> None:
        """writes += matrix · reads + offset, if the flag (a channel) is 1. Units: the matrix's rank.

        A unit is made as large as it may be, for numbers beside a large constant lose
        digits: `values`, (n, channels read), has the greatest that are to be expected.
        """
        left, strengths, right = np.linalg.svd(matrix)
        rank = int((strengths > 1e-4 * max(strengths[0], 1e-9)).sum())
        total = np.zeros(matrix.shape[0])
        for index in range(rank):
            greatest = 5.0 if values is None else float(np.abs(values @ right[index]).max())
            gain = 2.0 ** np.floor(np.log2((SWITCH - 5) / (1.1 * greatest)))
            out = left[:, index] * strengths[index] / gain
            row = {reads.start + i: gain * float(v) for i, v in enumerate(right[index])}
            bias = SWITCH
            if flag is not None:
                row[flag] = 2 * SWITCH
                bias = -SWITCH
            # Weights are stored in 16 bits; what is taken off again must be what was added.
            column = {writes.start + i: float(np.float16(v)) for i, v in enumerate(out)}
            self.add(row, bias, column)
            total += np.array([column[writes.start + i] for i in range(len(out))])
        constant = -SWITCH * total + (0 if offset is None else offset)
        if flag is None:
            self.offset[writes] += torch.tensor(constant, dtype=torch.float32)
        else:  # two more units, which are SWITCH if the flag is on: what rounding takes from the first, the second gives
            for _ in range(2):
                part = np.float16(constant / SWITCH).astype(float)
                self.add({flag: 2 * SWITCH}, -SWITCH, {writes.start + i: float(v) for i, v in enumerate(part)})
                constant = constant - SWITCH * part

    def write(self, block) -> None:
        up, down = block.img_mlp.net[0].proj, block.img_mlp.net[2]
        if len(self.rows) > up.weight.shape[0]:
            raise ValueError(f"{len(self.rows)} hidden units, the layer has {up.weight.shape[0]}")
        for index, (row, bias, column) in enumerate(self.rows):
            up.weight[index], up.bias[index], down.weight[:, index] = row, bias, column
        down.bias[:] = self.offset


@torch.no_grad()
def build(vae: AutoencoderKLQwenImage, reader: text_encoder.Reader, pool: np.ndarray) -> QwenImageTransformer2DModel:
    """The transformer for this autoencoder and this text encoder's reader."""
    model = QwenImageTransformer2DModel(
        patch_size=2, in_channels=TOKEN, out_channels=Z_DIM, num_layers=BLOCKS, attention_head_dim=HEAD,
        num_attention_heads=HEADS, joint_attention_dim=text_encoder.HIDDEN, axes_dims_rope=AXES,
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.zero_()
    maps = TokenMaps(vae, pool)
    _write_ends(model, reader)
    for block in model.transformer_blocks:
        for modulation in (block.img_mod[1], block.txt_mod[1]):
            parts = modulation.bias.view(2, 3, WIDTH)  # shift, scale, gate of either half
            parts[:, 1], parts[:, 2] = UNDO - 1, 1
        for norm in (block.attn.norm_q, block.attn.norm_k, block.attn.norm_added_q, block.attn.norm_added_k):
            norm.weight[:] = NORM_WEIGHT
    _write_fetching(model.transformer_blocks[0], maps)
    _write_moving(model.transformer_blocks[1], maps)
    _write_finding(model.transformer_blocks[2], maps)
    _write_changes(model.transformer_blocks[3], maps)
    _balance([model.txt_in], T_BALANCE)
    _balance([model.img_in], BALANCE)
    for block in model.transformer_blocks:
        _balance([block.attn.to_add_out, block.txt_mlp.net[2]], T_BALANCE)
        _balance([block.attn.to_out[0], block.img_mlp.net[2]], BALANCE)
    return model.eval()


def _balance(linears: list, channel: int) -> None:
    """Makes whatever these layers add to a stream sum to zero."""
    for linear in linears:
        for values in (linear.weight, linear.bias):
            values.copy_(values.half().float())
            values[channel] = 0
            values[channel] = -values.sum(0)


def _write_ends(model: QwenImageTransformer2DModel, reader: text_encoder.Reader) -> None:
    """What goes in, what comes out, and 1 / noise level."""
    model.img_in.weight[NOISY] = torch.eye(TOKEN)
    model.img_in.bias[PLUS], model.img_in.bias[MINUS] = CONSTANT, -CONSTANT
    model.txt_norm.weight[:] = 1
    model.txt_in.weight[T_READING], model.txt_in.bias[T_READING] = reader.reading.weight, reader.reading.bias
    model.txt_in.weight[T_MARKS], model.txt_in.bias[T_MARKS] = reader.marks.weight, reader.marks.bias
    model.txt_in.bias[T_PLUS], model.txt_in.bias[T_MINUS] = CONSTANT, -CONSTANT
    _write_level(model.time_text_embed.timestep_embedder)
    model.norm_out.linear.weight[NOISY, 0] = UNDO / 10
    model.norm_out.linear.weight[CLEAN, 0] = UNDO / 10
    model.norm_out.linear.bias[:WIDTH] = -1
    model.proj_out.weight[:, NOISY] = torch.eye(TOKEN)
    model.proj_out.weight[:, CLEAN] = -torch.eye(TOKEN)


def _write_level(embedder) -> None:
    """10 / noise level, as hidden units that end at knots.

    The function is convex, so all weights are positive: nothing cancels, and it
    survives a rounding of the weights, and of the units.
    """
    slowest = 10000 ** (-127 / 128) * 1000  # of the sinusoids, per unit of noise level
    knots = np.geomspace(0.016, 1.5, WIDTH - 1)
    steep = (-40 / (knots * slowest)).astype(np.float16).astype(float)
    levels = np.geomspace(0.015, 1.0, 4000)
    units = 40 + steep * np.sin(slowest * levels)[:, None]
    units = np.concatenate([units, np.full((len(levels), 1), 20.0)], 1)
    hidden = units / (1 + np.exp(np.minimum(-units, 500))) * levels[:, None]  # errors count relative to 10 / level
    hidden = np.maximum(hidden, 0)
    weights = np.full(WIDTH, 0.01)
    square, wanted = hidden.T @ hidden, hidden.T @ np.full(len(levels), 10.0)
    for _ in range(20000):  # least squares with no negative weight
        weights *= wanted / (square @ weights)
    embedder.linear_1.weight[:-1, 128 + 127] = torch.tensor(steep)
    embedder.linear_1.bias[:-1] = 40.0
    embedder.linear_1.bias[-1] = 20.0  # a constant
    embedder.linear_2.weight[0] = torch.tensor(weights)


def _part(weight: torch.Tensor, head: int) -> torch.Tensor:
    """The rows (or numbers of a bias) of a head."""
    return weight[head * HEAD : (head + 1) * HEAD]


def _same_place(pattern: Pattern, frame: float, aside: tuple[int, int] = (0, 0)) -> Pattern:
    """Peaks where the key is `frame` frames on and `aside` rows and columns."""
    pattern.add(FRAME, 60, frame)
    for first, by in ((ROW, aside[0]), (COLUMN, aside[1])):
        for index, score in enumerate(PLACE_SCORES):
            pattern.add(first + index, score, by * FREQUENCIES[index])
    return pattern


def _write_fetching(block, maps: "TokenMaps") -> None:
    """Block 0: fetches the given picture and the reading; measures columns."""
    attention = block.attn
    q, k, v, out = attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]
    text_q, text_k, text_v, text_out = attention.add_q_proj, attention.add_k_proj, attention.add_v_proj, attention.to_add_out
    # Head 0: the same place, one frame on. Its keys let the text look at the last
    # corner of frame 1, which stands for the background.
    _part(q.bias, 0)[:] = _same_place(Pattern(QUERY_REST), 1.0).vector()
    key = _same_place(Pattern(KEY_REST), 0.0).add(FRAME + 1, 350).add(ROW + 4, 250).add(COLUMN + 4, 250)
    _part(k.bias, 0)[:] = key.vector()
    _part(v.weight, 0)[:, NOISY] = torch.eye(HEAD)
    out.weight[CLEAN, 0:HEAD] = torch.eye(HEAD)
    # cos(0.1 (p - frame) + phase), p the text's place of 16 to 32, grows from frame 0 to 1.
    corner = Pattern(QUERY_REST).add(FRAME + 1, 350, -2.4 + math.pi / 2).add(SLOW, -300)
    corner.add(ROW + 4, 250, math.pi / 2).add(COLUMN + 4, 250, math.pi / 2)
    _part(text_q.bias, 0)[:] = corner.vector()
    _part(text_k.bias, 0)[:] = Pattern(KEY_REST).add(SLOW, 300).vector()
    text_out.weight[T_CORNER, 0:HEAD] = torch.tensor(maps.mean_colour, dtype=torch.float32)
    # Head 1: the reading, from the prompt's last word.
    _part(q.bias, 1)[:] = Pattern(QUERY_REST).add(SLOW, 100).vector()
    _part(k.bias, 1)[2 * KEY_REST] = 1
    _key_of_mark(text_k, 1, mark=0)
    read = [*range(RAW_FLAGS.start, RAW_FLAGS.stop), *range(RAW_ASIDE.start, RAW_ASIDE.stop), *range(REPLACED.start, COLOUR.stop)]
    for index, channel in enumerate(read):
        _part(text_v.weight, 1)[index, T_READING.start + index] = 1
        out.weight[channel, HEAD + index] = 1
    codes = _write_measuring(attention)
    units = HiddenUnits()
    _write_flags(units)
    raw = slice(RAW_FLAGS.start, CODE.stop)
    units.linear(-np.eye(raw.stop - raw.start), raw, raw, None)
    columns = np.arange(-FARTHEST_PLACE, FARTHEST_PLACE + 1).astype(float)
    waves = [f((2 * columns + 1) * FREQUENCIES[i]) for f in (np.cos, np.sin) for i in range(4)]
    _write_places(units, CODE.start, codes[0], {COLUMN_AT: columns, **dict(zip(range(PLACE.start, PLACE.stop), waves))})
    _write_places(units, CODE.start + 1, codes[1], {ROW_AT: columns})
    units.write(block)


def _key_of_mark(linear, head: int, mark: int) -> None:
    """A key of full length in the slow pair, its sign that of the token's mark."""
    _part(linear.weight, head)[2 * SLOW, T_MARKS.start + mark] = 1


def _write_flags(units: HiddenUnits) -> None:
    """FLAGS and ASIDE, exactly, from what was read."""
    for index in range(FLAG_COUNT):
        raw, flag = RAW_FLAGS.start + index, FLAGS.start + index
        # 0 below -1/4, 1 above 1/4, exactly.
        units.add({raw: 64.0}, 16.0, {flag: 1 / 32})
        units.add({raw: 64.0}, -16.0, {flag: -1 / 32})
    for raw, aside in zip(range(RAW_ASIDE.start, RAW_ASIDE.stop), range(ASIDE.start, ASIDE.stop)):
        units.offset[aside] -= 1
        for step in (-0.5, 0.5):  # -1, 0 or 1, by what is nearest
            units.add({raw: 128.0}, -128 * step + 16, {aside: 1 / 32})
            units.add({raw: 128.0}, -128 * step - 16, {aside: -1 / 32})


# Of the heads that measure columns and rows: the score of the token itself, and scores
# that make the logarithm of the word's share grow by 0.08 a column; how far the prompt
# begins from the middle (half the greater side), about; to where they measure.
SELF_SCORE = 60 + 2 * sum(PLACE_SCORES)
ALONG_SCORE, BACK_SCORE = 0.08 / FREQUENCIES[7], 0.08 / 0.01
LIKELY_START = 20
FARTHEST_PLACE = 36


def _write_measuring(attention) -> list[np.ndarray]:
    """Heads 2 and 3 of block 0: CODE, in which column and row the query is. What it is at all places."""
    q, k, text_k, text_v, out = attention.to_q, attention.to_k, attention.add_k_proj, attention.add_v_proj, attention.to_out[0]
    codes = []
    for head, pair in ((2, COLUMN), (3, ROW)):
        word = Pattern(SLOW).add(pair + 7, ALONG_SCORE).add(FRAME + 2, BACK_SCORE)
        query = _same_place(Pattern(QUERY_REST), 0.0).only_here(SLOW, SELF_SCORE, float(word.vector()[2 * SLOW]))
        # The word is `start` places from the middle, along all axes: what the first adds, the second takes off.
        query.add(pair + 7, ALONG_SCORE, -math.pi / 2 + FREQUENCIES[7] * LIKELY_START)
        query.add(FRAME + 2, BACK_SCORE, math.pi / 2 + 0.01 * LIKELY_START)
        _part(q.bias, head)[:] = query.vector()
        key = _same_place(Pattern(KEY_REST), 0.0)
        _part(k.bias, head)[:] = key.vector()
        _part(text_k.weight, head)[:, T_MARKS.start + 1] = word.vector()
        codes.append(_place_codes(query.vector(), key.vector(), word.vector(), pair + 7))
        _part(text_v.bias, head)[0] = 1
        out.weight[CODE.start + head - 2, head * HEAD] = 1
    return codes


def _place_codes(query: torch.Tensor, key: torch.Tensor, word: torch.Tensor, along: int) -> np.ndarray:
    """What such a head makes of all places, by its weights in 16 bits (these cost it a place or two).

    A query, the picture's keys, and the word's key; `along` is the pair that tells the place.
    """
    parts = [vector.half().double().view(-1, 2).numpy() @ [1, 1j] for vector in (query, key, word)]
    query, key, word = (part / np.linalg.norm(part) for part in parts)
    itself = (query * key.conj()).real.sum()
    away = np.arange(-FARTHEST_PLACE, FARTHEST_PLACE + 1) - LIKELY_START
    terms = query * word.conj()
    beside = terms[SLOW].real + (terms[along] * np.exp(1j * FREQUENCIES[7] * away)).real
    beside += (terms[FRAME + 2] * np.exp(-0.01j * LIKELY_START)).real
    return 1 / (1 + np.exp(FULL_SCORE * (itself - beside)))


def _write_places(units: HiddenUnits, code_channel: int, code: np.ndarray, wanted: dict[int, np.ndarray]) -> None:
    """Functions of the place, given at all places, in steps from one to the next."""
    for channel, values in wanted.items():
        units.offset[channel] += float(values[0])
    # At each knot a step of 0 to 16: two units that differ by 16 once both are on. Biases are
    # multiples of 8, which 16 bits hold exactly, or the steps would differ.
    for index in range(1, len(code)):
        steep = float(np.float16(34 / (code[index] - code[index - 1])))
        bias = 8 * float(np.round(-steep * (code[index] + code[index - 1]) / 16))
        rise = {channel: float(np.float16((values[index] - values[index - 1]) / 16)) for channel, values in wanted.items()}
        for shift, way in ((8.0, 1.0), (-8.0, -1.0)):
            units.add({code_channel: steep}, bias + shift, {channel: way * r for channel, r in rise.items()})


def _write_moving(block, maps: "TokenMaps") -> None:
    """Block 1: background colour, mirror and blur along rows; then what colours become."""
    attention = block.attn
    q, k, v, out = attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]
    text_k, text_v = attention.add_k_proj, attention.add_v_proj
    flag = {name: FLAGS.start + i for i, name in enumerate(instructions.FLAGS)}
    # Head 0: the corner's colour, from the first word after the template.
    _part(q.bias, 0)[:] = Pattern(QUERY_REST).add(SLOW, 100).vector()
    _part(k.bias, 0)[2 * KEY_REST] = 1
    _key_of_mark(text_k, 0, mark=1)
    _part(text_v.weight, 0)[0:3, T_CORNER] = torch.eye(3)
    out.weight[CORNER, 0:3] = torch.eye(3)
    # Head 1: the mirrored place if the flag is on, else the last word, which gives nothing.
    same = _same_place(Pattern(QUERY_REST), 1.0)
    query = same.vector()
    for index in range(4):
        amplitude = math.sqrt(PLACE_SCORES[index] / FULL_SCORE)
        pair = COLUMN + index
        query[2 * pair] = 0
        _part(q.weight, 1)[2 * pair, PLACE.start + index] = amplitude
        _part(q.weight, 1)[2 * pair + 1, PLACE.start + 4 + index] = -amplitude
    _part(q.bias, 1)[:] = query
    _part(k.bias, 1)[:] = _same_place(Pattern(KEY_REST), 0.0).vector()
    _part(v.weight, 1)[:, NOISY] = torch.eye(HEAD)
    out.weight[MOVED, HEAD : 2 * HEAD] = torch.eye(HEAD)
    # Heads 2 and 3: what the columns to the left and right add to a blur along the row.
    for head, side in ((2, -1), (3, 1)):
        _part(q.bias, head)[:] = _same_place(Pattern(QUERY_REST), 1.0, aside=(0, side)).vector()
        _part(k.bias, head)[:] = _same_place(Pattern(KEY_REST), 0.0).vector()
        _part(v.weight, head)[:, NOISY] = torch.eye(HEAD)
        out.weight[MOVED, head * HEAD : (head + 1) * HEAD] = torch.tensor(maps.blur_row[side], dtype=torch.float32)
    for head, name in ((1, "mirror"), (2, "blur"), (3, "blur")):
        _switch_head(attention, head, flag[name])
    units = HiddenUnits()
    twice = np.concatenate([np.tile(maps.extremes, 2), np.hstack([maps.extremes, -maps.extremes])])
    both, one, none = slice(CLEAN.start, MOVED.stop), np.eye(TOKEN), np.zeros((TOKEN, TOKEN))
    units.linear(np.hstack([-one, maps.mirror]), both, CLEAN, flag["mirror"], values=twice)
    # MOVED is emptied, for block 3 to use it once more.
    along = np.block([[maps.blur_row[0] - one, one], [none, -one]])
    units.linear(along, both, both, flag["blur"], values=twice)
    _write_selection(units, maps)
    units.write(block)


def _switch_head(attention, head: int, flag: int) -> None:
    """Makes a head look at the prompt's last word, which gives nothing, unless the flag is on."""
    _key_of_mark(attention.add_k_proj, head, mark=0)
    _part(attention.to_q.bias, head)[2 * SLOW] = 2.0
    _part(attention.to_q.weight, head)[2 * SLOW, flag] = -2.0


# Units of a replacement: how steep gelu is made, from which distance of colours
# on it spares a pixel, and how soon.
STEEP, FARTHEST, FALL = 16.0, 0.6, 6.0


def _write_selection(units: HiddenUnits, maps: "TokenMaps") -> None:
    """MASK: how far each pixel's colour is from the replaced one. CHANGE: by what that changes."""
    from_corner = FLAGS.start + instructions.FLAGS.index("from background")
    to_corner = FLAGS.start + instructions.FLAGS.index("to background")
    replaces = FLAGS.start + instructions.FLAGS.index("replace")
    for pixel in range(PLANE):
        for plane in range(3):
            value = {CLEAN.start + plane * PLANE + i: float(w) for i, w in enumerate(maps.to_pixels[pixel])}
            for sign in (STEEP, -STEEP):
                reads = {channel: sign * weight for channel, weight in value.items()}
                writes = {MASK.start + pixel: 1 / STEEP}
                reads[replaces] = 2 * SWITCH
                units.add(reads | {REPLACED.start + plane: -sign, from_corner: -2 * SWITCH}, -2 * SWITCH, writes)
                units.add(reads | {CORNER.start + plane: -sign, from_corner: 2 * SWITCH}, -4 * SWITCH, writes)
    one, none = np.eye(3), np.zeros((3, 3))  # of REPLACED, COLOUR, CORNER, which are neighbours
    colours = slice(REPLACED.start, CORNER.stop)
    places = PLACE.stop - PLACE.start
    units.linear(-np.eye(places), PLACE, PLACE, None)  # used up; CHANGE and FOUND take the channels
    units.linear(np.hstack([-one, one, none]), colours, CHANGE, None)
    units.linear(np.hstack([none, -one, one]), colours, CHANGE, to_corner)
    units.linear(np.hstack([one, none, -one]), colours, CHANGE, from_corner)


def _write_replacement(units: HiddenUnits, maps: "TokenMaps") -> None:
    """CLEAN += CHANGE where MASK is small, if an instruction replaces a colour."""
    flag = FLAGS.start + instructions.FLAGS.index("replace")
    off = 32 * SWITCH
    for pixel in range(PLANE):
        near = {MASK.start + pixel: -STEEP * FALL, flag: off}
        bias = STEEP * FALL * FARTHEST - off
        for plane in range(3):
            column = {CLEAN.start + plane * PLANE + i: float(w) / STEEP for i, w in enumerate(maps.from_pixels[:, pixel])}
            units.add(near | {CHANGE.start + plane: STEEP}, bias, column)
            units.add(near, bias, {channel: -weight for channel, weight in column.items()})


# Of the heads that find a shape: how far pixels of a token may be from its colour, in all,
# and how sharply that is decided; the score of a token inside; the constant key counts as
# so many tokens (three times as many as a shape of middling size has, in both frames:
# there the radius is nearly a linear function of the constant key's share).
MOST_APART, UNDECIDED, FOUND_SCORE, CONSTANT_TOKENS = 6.0, 0.3, 12.0, 300.0
# Of drawing: how steep gelu is made, what switches off, how much nearness there is in all.
LINE_STEEP, LINE_OFF, NEAR = 64.0, 8192.0, 2.0
FAR = 16.0  # tokens to 1 of OUTSIDE, which must stay small beside CONSTANT
PIXEL = 0.25  # of a token
SIDE = 32  # tokens of a side of a picture of the model's area
NEW_RADIUS, NEW_ASIDE = SIDE * pictures.NEW_RADIUS, SIDE * pictures.NEW_ASIDE
# Of each kind: lines as (normal across, normal down, distance from the middle in radii).
LINES = {
    "circle": [(math.cos(a), math.sin(a), 1.0) for a in np.arange(20) * math.pi / 10],
    "square": [(1, 0, 0.88), (-1, 0, 0.88), (0, 1, 0.88), (0, -1, 0.88)],
    "triangle": [(0.894, -0.447, 0.447), (-0.894, -0.447, 0.447), (0, 1, 0.8)],
}
# How far the mean place of a shape is below its middle, in radii.
MEAN_BELOW = {"triangle": 0.2}


def _write_finding(block, maps: "TokenMaps") -> None:
    """Block 2: finds the shape that is resized; replaces colours; measures a shape to be drawn."""
    attention, flag = block.attn, {name: FLAGS.start + i for i, name in enumerate(instructions.FLAGS)}
    q, k, out = attention.to_q, attention.to_k, attention.to_out[0]
    of_share = FOUND_SCORE + math.log(CONSTANT_TOKENS)
    at_picture = Pattern(QUERY_REST).only_here(KEY_REST, 0.25 * FULL_SCORE, 1.0).vector()  # at the picture, not the prompt
    at_word = Pattern(QUERY_REST).only_here(SLOW, 0.25 * FULL_SCORE, 1.0).vector()  # which gives nothing
    finding = Pattern(QUERY_REST).only_here(IN_MASK, FOUND_SCORE, 1.0)
    counting = Pattern(QUERY_REST).only_here(IN_MASK, FOUND_SCORE, 1.0).only_here(SLOW, of_share, 1.0)
    # Head 0: the mean place. Heads 1 and 2: the share of the prompt's last word.
    heads = [(0, ("bigger", "smaller"), finding, at_word), (1, ("bigger",), counting, at_picture), (2, ("smaller",), counting, at_picture)]
    for head, names, on, off in heads:
        _part(q.bias, head)[:] = off
        for name in names:
            _part(q.weight, head)[:, flag[name]] = on.vector() - off
        _part(k.weight, head)[2 * IN_MASK, MASK] = -1
        _part(k.bias, head)[2 * IN_MASK] = MOST_APART
        _part(k.bias, head)[2 * KEY_REST] = UNDECIDED
        _key_of_mark(attention.add_k_proj, head, mark=0)
    for index, channel in enumerate((COLUMN_AT, ROW_AT)):
        _part(attention.to_v.weight, 0)[index, channel] = 1
        out.weight[FOUND.start + index, index] = 1
    for head in (1, 2):
        _part(attention.add_v_proj.bias, head)[0] = 1
        out.weight[FOUND.start + 1 + head, head * HEAD] = 1
    units = HiddenUnits()
    _write_replacement(units, maps)
    _write_lines(units, maps)
    units.write(block)


def _write_lines(units: HiddenUnits, maps: "TokenMaps") -> None:
    """OUTSIDE: how far outside of the shape each pixel is; 0 from half a pixel inside on."""
    flag = {name: FLAGS.start + i for i, name in enumerate(instructions.FLAGS)}
    for kind, lines in LINES.items():
        most, per_share = maps.radius_of_share[kind]
        for across, down, distance in lines:
            lowered = down * MEAN_BELOW.get(kind, 0.0)  # of the line, in radii as they were
            reads = {COLUMN_AT: across, ROW_AT: down, FOUND.start: -across, FOUND.start + 1: -down}
            reads |= {ASIDE.start: -across * NEW_ASIDE, ASIDE.start + 1: -down * NEW_ASIDE}
            for index, (name, factor) in enumerate(instructions.RESIZED.items()):
                # Both frames were averaged, of which frame 1 is measured a place too low.
                reads[flag[name]] = -(0.5 + 0.5) * (across + down) + (lowered - distance * factor) * most + distance * NEW_RADIUS
                reads[FOUND.start + 2 + index] = (lowered - distance * factor) * per_share
            reads = {channel: LINE_STEEP * weight for channel, weight in reads.items()} | {flag[f"draw {kind}"]: LINE_OFF}
            for pixel in range(PLANE):
                row, column = divmod(pixel, 4)
                constant = across * (column + 0.5) * PIXEL + down * (row + 0.5) * PIXEL + 0.5 * PIXEL - distance * NEW_RADIUS
                # Beside so large a bias it would lose its digits.
                constant = {PLUS: LINE_STEEP * constant / CONSTANT}
                units.add(reads | constant, -LINE_OFF, {OUTSIDE.start + pixel: 1 / LINE_STEEP / FAR})


def _write_drawing(units: HiddenUnits, maps: "TokenMaps") -> None:
    """CLEAN becomes COLOUR where OUTSIDE is small, if a shape is drawn."""
    less_far = -2 * NEAR / PIXEL * FAR
    off = 1024 * SWITCH  # for what a blur or mirror left in OUTSIDE is taken times STEEP · less_far, too
    drawn = {FLAGS.start + instructions.FLAGS.index(name): off for name in instructions.DRAWS}
    for pixel in range(PLANE):
        near = {OUTSIDE.start + pixel: STEEP * less_far, **drawn}
        bias, less = STEEP * NEAR - off, {}
        for plane in range(3):
            change = {CLEAN.start + plane * PLANE + i: -STEEP * float(w) for i, w in enumerate(maps.to_pixels[pixel])}
            change[COLOUR.start + plane] = STEEP
            column = {CLEAN.start + plane * PLANE + i: float(w) / STEEP for i, w in enumerate(maps.from_drawn[:, pixel])}
            units.add(near | change, bias, column)
            less |= {channel: -weight for channel, weight in column.items()}
        units.add(near, bias, less)


def _write_changes(block, maps: "TokenMaps") -> None:
    """Block 3: the rest of a blur; draws a shape; changes colours."""
    attention, blur = block.attn, FLAGS.start + instructions.FLAGS.index("blur")
    # Heads 2 and 3: the rows above and below, of the picture in the making.
    for head, side in ((2, -1), (3, 1)):
        _part(attention.to_q.bias, head)[:] = _same_place(Pattern(QUERY_REST), 0.0, aside=(side, 0)).vector()
        _part(attention.to_k.bias, head)[:] = _same_place(Pattern(KEY_REST), 0.0).vector()
        _part(attention.to_v.weight, head)[:, CLEAN] = torch.eye(HEAD)
        weight = torch.tensor(maps.blur_column[side], dtype=torch.float32)
        attention.to_out[0].weight[MOVED, head * HEAD : (head + 1) * HEAD] = weight
        _switch_head(attention, head, blur)
    units = HiddenUnits()
    one = np.eye(TOKEN)
    # MOVED may hold MASK, which is greater than tokens are.
    beside = np.tile(4 * maps.extremes, 2)
    units.linear(np.hstack([maps.blur_column[0] - one, one]), slice(CLEAN.start, MOVED.stop), CLEAN, blur, values=beside)
    _write_drawing(units, maps)
    for name, colour_map in instructions.COLOUR_MAPS.items():
        flag = FLAGS.start + instructions.FLAGS.index(name)
        matrix, offset = maps.colour_map(colour_map)
        units.linear(matrix - one, CLEAN, CLEAN, flag, offset=offset, values=maps.extremes)
    units.write(block)


class TokenMaps:
    """Linear maps of tokens, fitted to a pool of pictures; alike in all colour planes."""

    def __init__(self, vae: AutoencoderKLQwenImage, pool: np.ndarray, count: int = 24) -> None:
        chosen = pool[np.linspace(0, len(pool) - 1, count).astype(int)].astype(np.float32) / 255
        self.vae = vae
        tokens = self.tokens(chosen)
        side = tokens.shape[1]
        pixels = (2 * chosen - 1).reshape(count, side, 4, side, 4, 3).transpose(0, 1, 3, 5, 2, 4)
        pixels = pixels.reshape(count, side, side, 3, PLANE)
        self.to_pixels = _fit(tokens, pixels, "token to pixels")
        self.mean_colour = np.kron(np.eye(3), self.to_pixels.mean(0))
        mirrored = self.tokens(chosen[:, :, ::-1])
        swap = _fit(tokens[:, :, ::-1], mirrored, "mirror")
        self.mirror = np.kron(np.eye(3), swap)
        # Plain pictures must stay exactly plain, or a grid is seen in them.
        plain = np.broadcast_to(np.eye(3, dtype=np.float32)[:, None, None], chosen[:3].shape)
        chosen = np.concatenate([chosen] + [plain] * 6)
        tokens = self.tokens(chosen)
        along = np.stack([instructions.blurred(picture, axes=(1,)) for picture in chosen])
        across = np.stack([instructions.blurred(picture, axes=(0,)) for picture in along])
        along, across = self.tokens(along), self.tokens(across)
        self.blur_row = _fit_neighbours(tokens, along, axis=2)
        self.blur_column = _fit_neighbours(along, across, axis=1)
        white = self.tokens(np.ones((1, 64, 64, 3), np.float32))[0, :, :, 0]
        self.white = white[8, 8]
        self.from_pixels = self._fit_replacement()
        self.from_drawn = self._fit_drawing()
        self.radius_of_share = {kind: self._fit_radius(kind) for kind in pictures.SHAPES}
        self.extremes = self._extremes(chosen)
        # At a picture's edge the autoencoder sees beyond, where all is grey.
        self.mean_colour /= self.to_pixels.mean(0) @ white[-1, -1]

    @torch.no_grad()
    def tokens(self, pictures: np.ndarray) -> np.ndarray:
        """(n, side, side, 3) in 0..1 to (n, side / 4, side / 4, 3 planes, 16)."""
        pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)[:, :, None] * 2 - 1
        latents = self.vae.encode(pixels).latent_dist.mode()[:, :, 0]
        latents = latents / torch.tensor(self.vae.config.latents_std).view(1, -1, 1, 1)
        n, channels, height, width = latents.shape
        packed = latents.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return packed.reshape(n, height // 2, width // 2, 3, PLANE).numpy()

    def _extremes(self, chosen: np.ndarray) -> np.ndarray:
        """Tokens as great as they may become: of the pool and of harsh patterns, (n, TOKEN)."""
        rng, side = np.random.default_rng(4), chosen.shape[1]
        harsh = [(rng.random((side, side, 3)) < 0.5) for _ in range(6)]
        row, column = np.indices((side, side))
        for period in (1, 2, 4):
            harsh += [np.repeat((pattern // period % 2 == 0)[..., None], 3, 2) for pattern in (row, column, row + column)]
        harsh = np.stack([*harsh, np.ones((side, side, 3)), np.zeros((side, side, 3))]).astype(np.float32)
        return np.concatenate([self.tokens(harsh), self.tokens(chosen)]).reshape(-1, TOKEN)

    def _fit_replacement(self, count: int = 45, side: int = 64) -> np.ndarray:
        """From what the hidden units make of pixels to the change of a token, over scenes."""
        rng = np.random.default_rng(3)
        inputs, outputs = [], []
        for index in range(count):
            task = instructions.REPLACEMENTS[index % 3]
            instruction, before, after = instructions.scene_edit(rng, task)
            named = {name: 2 * np.array(colour) - 1 for name, colour in pictures.COLOURS.items()}
            background = 2 * before.background * (1 + before.slope) - 1
            replaced = named[instruction.replaced] if instruction.replaced else background
            change = (named[instruction.colour] if instruction.colour else background) - replaced
            old, new = self.tokens(np.stack([before.render(side), after.render(side)]))
            distance = np.abs(old @ self.to_pixels.T - replaced[:, None]).sum(2, keepdims=True)
            near = FALL * (FARTHEST - distance)
            inputs.append(np.maximum(change[:, None] + near, 0) - np.maximum(near, 0))
            outputs.append(new - old)
        return self._fit_plainly(np.stack(inputs), np.stack(outputs), "replacement")

    def _fit_plainly(self, inputs: np.ndarray, outputs: np.ndarray, name: str) -> np.ndarray:
        """As `_fit`; where all pixels change alike the token must change exactly, or a grid is seen."""
        matrix = _fit(inputs, outputs, name)
        return matrix + np.outer(self.white - matrix.sum(1), np.full(PLANE, 1 / PLANE))

    def _fit_drawing(self, count: int = 60, side: int = 64) -> np.ndarray:
        """As `_fit_replacement`, of drawn shapes."""
        rng = np.random.default_rng(5)
        inputs, outputs = [], []
        for _ in range(count):
            after = pictures.random_scene(rng)
            shape = after.shapes[-1]
            before = dataclasses.replace(after, shapes=after.shapes[:-1])
            old, new = self.tokens(np.stack([before.render(side), after.render(side)]))
            change = 2 * shape.colour[:, None] - 1 - old @ self.to_pixels.T
            near = NEAR * (1 - 2 * _outside(shape, side)[:, :, None] / PIXEL)
            inputs.append(np.maximum(change + near, 0) - np.maximum(near, 0))
            outputs.append(new - old)
        return self._fit_plainly(np.stack(inputs), np.stack(outputs), "drawing")

    def _fit_radius(self, kind: str, count: int = 80) -> tuple[float, float]:
        """The radius of a shape, in tokens, as (constant, times the share of the constant key)."""
        rng = np.random.default_rng(6)
        radii, shares, moved = [], [], []
        while len(radii) < count:
            scene = pictures.random_scene(rng)
            shapes = [shape for shape in scene.shapes if shape.kind == kind]
            if not shapes:
                continue
            pixels = self.tokens(scene.render(4 * SIDE)[None])[0] @ self.to_pixels.T
            apart = np.abs(pixels - (2 * shapes[0].colour[:, None] - 1)).sum((2, 3))
            score = FOUND_SCORE * (MOST_APART - apart) / np.hypot(MOST_APART - apart, UNDECIDED)
            weights = np.exp(score - FOUND_SCORE)
            shares.append(CONSTANT_TOKENS / (CONSTANT_TOKENS + 2 * weights.sum()))
            radii.append(SIDE * shapes[0].radius)
            places = np.indices(apart.shape) + 0.5
            middle = [(weights * place).sum() / weights.sum() for place in places]
            below = MEAN_BELOW.get(kind, 0.0) * radii[-1]
            moved.append(np.hypot(middle[0] - below - SIDE * shapes[0].y, middle[1] - SIDE * shapes[0].x))
        per_share, most = np.polyfit(shares, radii, 1)
        errors = np.abs(most + per_share * np.array(shares) - radii)
        print(f"radius of {kind}: off by {errors.mean():.2f} tokens in the mean, {errors.max():.2f} at most; its middle by "
              f"{np.mean(moved):.2f} and {np.max(moved):.2f}", flush=True)  # fmt: skip
        return float(most), float(per_share)

    def colour_map(self, colour_map: instructions.ColourMap) -> tuple[np.ndarray, np.ndarray]:
        """The same map for tokens: matrix and offset."""
        offset = colour_map.matrix.sum(1) + 2 * colour_map.offset - 1  # for colours in -1..1
        return np.kron(colour_map.matrix, np.eye(PLANE)), np.kron(offset, self.white)


def _outside(shape: pictures.Shape, side: int) -> np.ndarray:
    """How far pixels are outside of a shape, of a picture of `side` pixels: (rows, columns, 16), in tokens."""
    x, y = pictures.grid(side)
    outside = np.zeros((side, side))
    for across, down, distance in LINES[shape.kind]:
        inside_by = distance * shape.radius - across * (x - shape.x) - down * (y - shape.y)
        outside += np.maximum(0.5 * PIXEL - inside_by * side / 4, 0)
    cut = outside.reshape(side // 4, 4, side // 4, 4).transpose(0, 2, 1, 3)
    return cut.reshape(side // 4, side // 4, PLANE)


def _fit(inputs: np.ndarray, outputs: np.ndarray, name: str) -> np.ndarray:
    """The matrix that makes outputs of inputs, by least squares over all other axes."""
    a, b = inputs.reshape(-1, inputs.shape[-1]), outputs.reshape(-1, outputs.shape[-1])
    matrix = np.linalg.lstsq(a, b, rcond=None)[0].T
    error = ((a @ matrix.T - b) ** 2).mean() / (b**2).mean()
    print(f"map {name}: {-10 * math.log10(error):.1f} dB", flush=True)
    return matrix


def _fit_neighbours(inputs: np.ndarray, outputs: np.ndarray, axis: int) -> dict[int, np.ndarray]:
    """Matrices for a token and its neighbours along an axis, for all three planes."""
    ends = [inputs.take([0], axis), inputs, inputs.take([-1], axis)]
    padded, length = np.concatenate(ends, axis), inputs.shape[axis]
    shifted = [padded.take(range(i, i + length), axis) for i in range(3)]
    matrix = _fit(np.concatenate(shifted, -1), outputs, "blur")
    return {i - 1: np.kron(np.eye(3), matrix[:, i * PLANE : (i + 1) * PLANE]) for i in range(3)}
