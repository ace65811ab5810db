"""The autoencoder: a linear transform, fitted, then written into the published class.

`LineCodec` is a chain of linear convolutions for one line of one colour: it
halves the length and keeps two numbers a place, one for sums, one for
differences. It is fitted with L-BFGS, so that lines come back, and that a
reversed line has reversed latents (with the differences negated), and that a plain
line is the same up to its ends, beyond which the layers see zeros. `build` makes
two-dimensional kernels of it (outer products) for red, green and blue, and puts
them into an `AutoencoderKLQwenImage`: its residual branches and attention are
zero, and its last activation is made linear by pairs of opposite channels, since
silu(x) - silu(-x) = x, beside one large constant channel that keeps the
normalisation from acting. So latents are a linear function of the picture, the
same in every colour.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from torch import nn

BASE, MULTIPLES = 32, [1, 2]
PER_PLANE = 4
Z_DIM = 3 * PER_PLANE
# Widths of the chain for a line. Their squares, times three colours, twice, and
# one more fit the class's widths.
FIRST, MIDDLE, WIDE, LAST = 3, 3, 4, 2
# The constant channel: large beside the others, small enough for 16 bits.
CONSTANT = 256.0
# Of the demand that plain lines are plain at their ends; costs half a decibel elsewhere.
PLAIN_WEIGHT = 0.5


class LineCodec(nn.Module):
    """(n, 1, length) to (n, 2, length / 2) and back, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.encode_in = nn.Conv1d(1, FIRST, 3, padding=1, bias=False)
        self.halving = nn.Conv1d(FIRST, MIDDLE, 3, stride=2, bias=False)
        self.encode_out = nn.Conv1d(MIDDLE, 2, 3, padding=1, bias=False)
        self.decode_in = nn.Conv1d(2, WIDE, 3, padding=1, bias=False)
        self.doubling = nn.Conv1d(WIDE, LAST, 3, padding=1, bias=False)
        self.decode_out = nn.Conv1d(LAST, 1, 3, padding=1, bias=False)

    def encode(self, line: torch.Tensor) -> torch.Tensor:
        return self.encode_out(self.halving(F.pad(self.encode_in(line), (0, 1))))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        wide = F.interpolate(self.decode_in(latents), scale_factor=2, mode="nearest")
        return self.decode_out(self.doubling(wide))


def fit(pool: np.ndarray, minutes: float, starts: int = 4, seed: int = 0) -> LineCodec:
    """Fits to lines of `pool`, (count, side, side, 3) bytes, from several random starts."""
    best, least = LineCodec(), float("inf")
    opposite = torch.tensor([1.0, -1.0]).view(1, 2, 1)
    for start in range(starts):
        torch.manual_seed(seed + start)
        codec, lines = LineCodec(), _lines(np.random.default_rng(seed + start), pool, 1500, 48)
        optimiser = torch.optim.LBFGS(
            codec.parameters(), max_iter=500, history_size=40, line_search_fn="strong_wolfe", tolerance_change=1e-13
        )
        deadline = time.time() + 60 * minutes / starts

        def closure() -> torch.Tensor:
            if time.time() > deadline:
                raise TimeoutError
            optimiser.zero_grad()
            latents = codec.encode(lines)
            reversed_latents = (latents * opposite).flip(2)
            error = (codec.decode(latents) - lines).square()
            reversed_error = (codec.decode(reversed_latents) - lines.flip(2)).square()
            asymmetry = (codec.encode(lines.flip(2)) - reversed_latents)[..., 2:-2].square().mean()
            # A short line has more ends than a picture's.
            loss = sum(w * (e[..., 2:-2].mean() + 0.05 * e.mean()) for w, e in ((1, error), (0.3, reversed_error)))
            loss = loss + 0.02 * asymmetry + PLAIN_WEIGHT * _unevenness(codec)
            loss.backward()
            losses.append(loss.item())
            return loss

        losses: list[float] = []
        try:
            optimiser.step(closure)
        except TimeoutError:
            pass
        print(f"codec start {start} loss {losses[-1]:.3e}", flush=True)
        if losses[-1] < least:
            best, least = codec, losses[-1]
    balance(best)
    return best


@torch.no_grad()
def balance(codec: LineCodec) -> None:
    """Scales differences so that noise in them is as visible as noise in sums."""
    impulses = torch.zeros(2, 2, 33)
    impulses[0, 0, 16] = impulses[1, 1, 16] = 1
    strengths = codec.decode(impulses).square().sum((1, 2)).sqrt()
    codec.encode_out.weight[1] *= strengths[1] / strengths[0]
    codec.decode_in.weight[:, 1] *= strengths[0] / strengths[1]


def _unevenness(codec: LineCodec) -> torch.Tensor:
    """How far the latents of a plain line, and the line of plain latents, are from plain."""
    latents = codec.encode(torch.ones(1, 1, 32))
    inner = latents[..., 8:9]
    apart = (latents - inner).square().mean() / inner.square().mean()
    return apart + (codec.decode(inner.expand_as(latents)) - 1).square().mean()


def _lines(rng: np.random.Generator, pool: np.ndarray, count: int, length: int) -> torch.Tensor:
    """Pieces of rows and columns, a little sharpened, with less of their mean."""
    lines = []
    for index in rng.integers(0, len(pool), count):
        place, first = rng.integers(pool.shape[1]), rng.integers(pool.shape[1] - length)
        picture = pool[index, :, :, rng.integers(3)]
        picture = picture if rng.random() < 0.5 else picture.T
        lines.append(picture[place, first : first + length])
    batch = torch.from_numpy(np.stack(lines)).float()[:, None] / 127.5 - 1
    batch = batch - 0.5 * batch.mean(2, keepdim=True)
    return batch + (batch - F.avg_pool1d(F.pad(batch, (1, 1), mode="replicate"), 3, 1))


def _outer(conv: nn.Conv1d) -> torch.Tensor:
    """The kernel that filters rows and columns alike: channels are (row filter, column filter)."""
    weight = conv.weight
    outs, ins, size = weight.shape
    return torch.einsum("oik,pjl->opijkl", weight, weight).reshape(outs**2, ins**2, size, size)


@torch.no_grad()
def build(codec: LineCodec, pool: np.ndarray) -> AutoencoderKLQwenImage:
    """The class with the codec as its weights. `pool` gives the scale of the latents.

    All latents have the same scale, that of the sums: so a colour map of pixels is
    the same colour map of latents, and rare strong differences stay moderate.
    Black to white is symmetric about zero.
    """
    pictures = torch.from_numpy(pool[:300].astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    planes = pictures.reshape(-1, 1, *pictures.shape[2:])
    features = F.conv2d(F.pad(F.conv2d(planes, _outer(codec.encode_in), padding=1), (0, 1, 0, 1)), _outer(codec.halving), stride=2)
    latents = F.conv2d(features, _outer(codec.encode_out), padding=1)
    deviation = float(latents[:, 0].square().mean().sqrt())
    vae = AutoencoderKLQwenImage(
        base_dim=BASE, z_dim=Z_DIM, dim_mult=MULTIPLES, num_res_blocks=1, attn_scales=[], temperal_downsample=[False],
        latents_mean=[0.0] * Z_DIM, latents_std=[deviation] * Z_DIM,
    )  # fmt: skip
    for name, parameter in vae.named_parameters():
        if not name.endswith("gamma"):
            parameter.zero_()
    encoder, decoder = vae.encoder, vae.decoder
    last_frame = -1  # with one frame, only the last slice of a kernel in time acts
    double = torch.zeros(3 * LAST**2, 3 * WIDE**2, 3, 3)
    for plane in range(3):
        _copy(encoder.conv_in.weight[:, :, last_frame], _outer(codec.encode_in), plane)
        _copy(encoder.down_blocks[1].resample[1].weight, _outer(codec.halving), plane)
        _copy(decoder.conv_in.weight[:, :, last_frame], _outer(codec.decode_in), plane)
        _copy(double, _outer(codec.doubling), plane)
    _pairs(encoder.down_blocks[2].conv_shortcut, torch.eye(3 * MIDDLE**2)[:, :, None, None])
    _from_pairs(encoder.conv_out.weight[:, :, last_frame], _outer(codec.encode_out), encoder.norm_out)
    encoder.conv_out.bias[Z_DIM:] = -8.0  # the logarithm of the variance: next to none
    _pairs(decoder.up_blocks[0].upsamplers[0].resample[1], double)
    _from_pairs(decoder.conv_out.weight[:, :, last_frame], _outer(codec.decode_out), decoder.norm_out)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight[:, :, 0, 0, 0] = torch.eye(conv.weight.shape[0])
    return vae.eval()


def _copy(weight: torch.Tensor, of_plane: torch.Tensor, plane: int) -> None:
    """Puts a plane's kernel on the diagonal of a kernel for all planes."""
    outs, ins = of_plane.shape[:2]
    weight[plane * outs : (plane + 1) * outs, plane * ins : (plane + 1) * ins] = of_plane


def _pairs(conv: nn.Module, weight: torch.Tensor) -> None:
    """Makes `conv` compute every feature twice, the second time negated, and the constant."""
    outs, ins = weight.shape[:2]
    target = conv.weight[:, :, -1] if conv.weight.ndim == 5 else conv.weight
    target[:outs, :ins] = weight
    target[outs : 2 * outs, :ins] = -weight
    conv.bias[2 * outs] = CONSTANT


def _from_pairs(weight: torch.Tensor, of_plane: torch.Tensor, norm: nn.Module) -> None:
    """Reads features out of pairs behind a normalisation and silu."""
    # The norm divides by the length, which the constant makes, and multiplies by the root.
    norm.gamma[:] = CONSTANT / norm.scale
    outs, features = of_plane.shape[:2]
    for plane in range(3):
        rows = slice(plane * outs, (plane + 1) * outs)
        first = plane * features
        weight[rows, first : first + features] = of_plane
        weight[rows, 3 * features + first : 3 * features + first + features] = -of_plane


def psnr_of_round_trip(vae: AutoencoderKLQwenImage, pictures: np.ndarray) -> np.ndarray:
    """Decibels of each picture after encoding and decoding; bytes, (count, side, side, 3)."""
    decibels = []
    for picture in pictures:
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float()[None, :, None] / 127.5 - 1
        with torch.no_grad():
            decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        error = ((decoded - pixels) / 2).square().mean()
        decibels.append(float(-10 * torch.log10(error)))
    return np.array(decibels)
