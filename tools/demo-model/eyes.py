"""The eyes: a vision tower that learns which shape is where, and in what colour.

Its tokens go to the text encoder, which reads "the circle" with their help. Before
that, the tower is trained alone: linear functions of each of its tokens (`Sight`)
tell what shape lies in the token's part of the picture, which shapes the picture
has at all, and their colours. Plain scenes and photo-like pictures, all procedural.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import pictures

TOKEN_SIDE = 28  # pixels of a token: two patches of 14
PATCH, MERGE = 14, 2
# Rows and columns of tokens: 16 at most, by the processor's `max_pixels`.
GRIDS = ((4, 4), (3, 5), (5, 3), (3, 4), (4, 3))
PHOTO_SIDE = 5 * TOKEN_SIDE
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
KINDS = len(pictures.SHAPES)
LOCAL, GLOBAL = KINDS + 3, KINDS * 4


@dataclasses.dataclass
class Views:
    """A batch of pictures and what is to be seen in them.

    `pixels`: (n, 3, height, width) in 0..1. `patches`: (n, patches, 6), how much of the
    patch each kind of shape covers, -1..1, and the colour of what covers it most;
    `tokens`: the same of tokens. `whole`: (n, 12), whether the picture has each kind,
    and its colour. The `..._care` are 0 where there is no answer.
    """

    pixels: torch.Tensor
    patches: torch.Tensor
    patches_care: torch.Tensor
    tokens: torch.Tensor
    tokens_care: torch.Tensor
    whole: torch.Tensor
    whole_care: torch.Tensor
    scenes: list[pictures.Scene | None]

    def to(self, device: str) -> "Views":
        """The views with their tensors on a device."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self) if f.name != "scenes"}
        return dataclasses.replace(self, **tensors)


def photo_bank(file: pathlib.Path, seed: int, count: int = 1000) -> np.ndarray:
    """Photo-like pictures, made once."""
    if not file.exists():
        rng = np.random.default_rng([seed, 7])
        made = [pictures.photo_like(rng, PHOTO_SIDE) for _ in range(count)]
        np.save(file, (np.stack(made) * 255 + 0.5).astype(np.uint8))
    return np.load(file)


def random_grid(rng: np.random.Generator) -> tuple[int, int]:
    return GRIDS[0] if rng.random() < 0.7 else GRIDS[rng.integers(1, len(GRIDS))]


def random_views(rng: np.random.Generator, bank: np.ndarray, grid: tuple[int, int], is_photo: np.ndarray) -> Views:
    """Pictures of rows · columns tokens: photo-like where `is_photo`, else scenes."""
    side = TOKEN_SIDE * (grid[0] * grid[1]) ** 0.5
    height, width = grid[0] * TOKEN_SIDE, grid[1] * TOKEN_SIDE
    scenes = [None if photo else pictures.random_scene(rng, width / side, height / side, freely=0.25) for photo in is_photo]
    views = _rendered(rng, scenes, grid, side)
    for index in np.flatnonzero(is_photo):
        photo = bank[rng.integers(len(bank))]
        top, left = rng.integers(photo.shape[0] - height + 1), rng.integers(photo.shape[1] - width + 1)
        cut = photo[top : top + height, left : left + width, rng.permutation(3)]
        cut = cut[:, ::-1] if rng.random() < 0.5 else cut
        views.pixels[index] = torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1) / 255
    return views


def _rendered(rng: np.random.Generator, scenes: list, grid: tuple[int, int], side: float) -> Views:
    """Scenes as pictures, each kind of shape at once; edges of different softness."""
    count, (height, width) = len(scenes), (grid[0] * TOKEN_SIDE, grid[1] * TOKEN_SIDE)
    values = np.zeros((count, KINDS, 6), np.float32)  # x, y, radius, colour
    values[:, :, :2] = -9
    ground, slope = np.zeros((count, 3), np.float32), np.zeros(count, np.float32)
    for index, scene in enumerate(scenes):
        if scene is None:
            continue
        ground[index], slope[index] = scene.background, scene.slope
        for shape in scene.shapes:
            values[index, pictures.SHAPES.index(shape.kind)] = [shape.x, shape.y, shape.radius, *shape.colour]
    values, ground = torch.from_numpy(values), torch.from_numpy(ground)
    down = ((torch.arange(height) + 0.5) / side).view(1, height, 1)
    along = ((torch.arange(width) + 0.5) / side).view(1, 1, width)
    softness = torch.tensor(rng.uniform(0.5, 1.0, count), dtype=torch.float32).view(-1, 1, 1)
    covers = []
    for kind, name in enumerate(pictures.SHAPES):
        x, y, radius = (values[:, kind, i].view(-1, 1, 1) for i in range(3))
        covers.append((0.5 - _distance(name, along - x, down - y, radius) * side * softness).clamp(0, 1))
    slope = torch.from_numpy(slope).view(-1, 1, 1, 1) * (2 * down * side / height - 1).view(1, 1, height, 1)
    pixels = (ground[:, :, None, None] * (1 + slope)).expand(-1, -1, -1, width).clone()
    for kind, cover in enumerate(covers):
        pixels += cover[:, None] * (values[:, kind, 3:, None, None] - pixels)
    colours = 2 * values[:, :, 3:] - 1
    present = (values[:, :, 2] > 0).float()
    whole = torch.cat([2 * present - 1, colours.flatten(1)], 1)
    whole_care = torch.cat([torch.ones_like(present), present.repeat_interleave(3, 1)], 1)
    covers = torch.stack(covers, 1)
    patches = _in_patch_order(F.avg_pool2d(covers, PATCH))
    tokens = F.avg_pool2d(covers, TOKEN_SIDE).flatten(2).transpose(1, 2)
    locally = [*_local(patches, colours), *_local(tokens, colours)]
    return Views(pixels.clamp(0, 1), *locally, whole, whole_care, scenes)


def _in_patch_order(values: torch.Tensor) -> torch.Tensor:
    """(n, channels, rows, columns) of patches to (n, patches, channels), a token's together."""
    n, channels, rows, columns = values.shape
    cut = values.view(n, channels, rows // MERGE, MERGE, columns // MERGE, MERGE)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(n, rows * columns, channels)


def _local(share: torch.Tensor, colours: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is wanted of places, and where, from the share that each kind covers."""
    most, which = share.max(-1)
    colour = colours.gather(1, which[..., None].expand(-1, -1, 3))
    wanted = torch.cat([2 * (share / 0.15).clamp(max=1) - 1, colour], -1)
    return wanted, torch.cat([torch.ones_like(share), (most > 0.05).float()[..., None].expand(-1, -1, 3)], -1)


def _distance(kind: str, across: torch.Tensor, down: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """As in `pictures.coverage`."""
    if kind == "circle":
        return torch.sqrt(across.square() + down.square()) - radius
    if kind == "square":
        return torch.maximum(across.abs(), down.abs()) - 0.88 * radius
    flank = 0.894 * across.abs() - 0.447 * down - 0.447 * radius
    return torch.maximum(flank, down - 0.8 * radius)


class Sight(nn.Module):
    """Linear functions of patches after every block, and of tokens: what is there, and in the whole."""

    def __init__(self, tower, hidden: int) -> None:
        super().__init__()
        self.patches = nn.ModuleList(nn.Linear(tower.patch_embed.embed_dim, LOCAL) for _ in tower.blocks)
        self.tokens, self.whole = nn.Linear(hidden, LOCAL), nn.Linear(hidden, GLOBAL)

    def loss(self, tokens: torch.Tensor, states: list[torch.Tensor], views: Views) -> torch.Tensor:
        """The squared errors, those of colours weighed more, for they must be exact."""
        heavier = lambda errors: errors[..., :KINDS].mean() + 2 * errors[..., KINDS:].mean()
        loss = heavier((self.tokens(tokens) - views.tokens).square() * views.tokens_care)
        loss = loss + 2 * heavier((self.whole(tokens) - views.whole[:, None]).square() * views.whole_care[:, None])
        for linear, state in zip(self.patches, states):
            seen = linear(F.rms_norm(state, state.shape[-1:]))
            loss = loss + heavier((seen - views.patches).square() * views.patches_care)
        return loss


def prepare(tower) -> None:
    """Starts the patch embedding as waves of each colour, of about equal strength."""
    place = (np.arange(PATCH) + 0.5) / PATCH * np.pi
    order = sorted((i + j, i, j) for i in range(6) for j in range(6))[: tower.patch_embed.embed_dim // 3]
    with torch.no_grad():
        weight = tower.patch_embed.proj.weight.zero_()
        for index, (total, i, j) in enumerate(order):
            wave = np.outer(np.cos(i * place), np.cos(j * place)) * (1 + total) ** 1.2 / PATCH**2 / 2
            for colour in range(3):
                weight[3 * index + colour, colour] = torch.tensor(wave, dtype=torch.float32)
        nn.init.normal_(weight[3 * len(order) :], std=0.02)
        for linear in [module for module in tower.modules() if isinstance(module, nn.Linear)]:
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)  # 0.02 is meant for wider layers


def see(tower, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What the class's forward makes of pictures of one size: (n, tokens, width).

    Also the patches' states after each block. Every block looks at the whole picture,
    so the order of patches does not matter.
    """
    n, _, height, width = pixels.shape
    rows, columns = height // TOKEN_SIDE, width // TOKEN_SIDE
    device = tower.patch_embed.proj.weight.device
    pixels = (pixels - MEAN.to(device)) / DEVIATION.to(device)
    cut = pixels.view(n, 3, rows, MERGE, PATCH, columns, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    weight = tower.patch_embed.proj.weight.sum(2).flatten(1)  # both frames are alike
    x = cut.reshape(n, rows * columns * MERGE**2, -1) @ weight.T
    places = torch.stack(torch.meshgrid(torch.arange(MERGE * rows), torch.arange(MERGE * columns), indexing="ij"))
    places = places.view(2, rows, MERGE, columns, MERGE).permute(1, 3, 2, 4, 0).reshape(-1, 2).to(device)
    cos, sin = tower.rotary_pos_emb(x, places)
    states = []
    for block in tower.blocks:
        x = x + _attended(block.attn, block.norm1(x), cos, sin)
        x = x + block.mlp(block.norm2(x))
        states.append(x)
    merger = tower.merger
    return merger.mlp(merger.ln_q(x).view(n, rows * columns, -1)), states


def _attended(attention, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    n, length, width = x.shape
    parts = attention.qkv(x).view(n, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    turn = lambda y: y * cos + torch.cat([-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]], -1) * sin
    mixed = F.scaled_dot_product_attention(turn(parts[0]), turn(parts[1]), parts[2])
    return attention.proj(mixed.transpose(1, 2).reshape(n, length, width))


def optimisers_of(blocks: nn.Module, parameters: list[nn.Parameter], rate: float = 1.0) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks, AdamW for all else; `rate` times the usual rates."""
    matrices = [p for p in blocks.parameters() if p.ndim == 2]
    inner = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in inner]
    return [
        torch.optim.Muon(matrices, lr=0.01 * rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3 * rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def set_rates(optimisers: list[torch.optim.Optimizer], share: float) -> None:
    """Sets learning rates to a share of the highest."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group.setdefault("highest", group["lr"])
            group["lr"] = group["highest"] * share


def descend(loss: torch.Tensor, parameters: list[nn.Parameter], optimisers: list[torch.optim.Optimizer]) -> None:
    """One step of all optimisers."""
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimiser in optimisers:
        optimiser.step()


def train(folder: pathlib.Path, minutes: float, tower, hidden: int, device: str = "cpu", seed: int = 0, batch: int = 64) -> None:
    """Trains the tower for `minutes` in all, from where it stopped last; saves `eyes.pt`."""
    torch.manual_seed(seed)
    bank = photo_bank(folder / "photos.npy", seed)
    sight = Sight(tower, hidden).to(device)
    parameters = [*tower.parameters(), *sight.parameters()]
    optimisers = optimisers_of(tower.blocks, parameters)
    step, spent, file = 0, 0.0, folder / "eyes.pt"
    if file.exists():
        state = torch.load(file, map_location=device)
        tower.load_state_dict(state["tower"])
        sight.load_state_dict(state["sight"])
        for optimiser, kept in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(kept)
        step, spent = state["step"], state["spent"]
    rng = np.random.default_rng([seed, step, 8])
    started, saved, kept = time.time(), time.time(), []

    def save() -> None:
        state = dict(tower=tower.state_dict(), sight=sight.state_dict(), step=step, spent=spent + time.time() - started)
        torch.save(state | dict(optimisers=[o.state_dict() for o in optimisers]), file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)

    while (share := (spent + time.time() - started) / (60 * minutes)) < 1:
        set_rates(optimisers, min(1, (step + 1) / 100) * min(1, 0.1 + 1.5 * (1 - share)))
        views = random_views(rng, bank, random_grid(rng), rng.random(batch) < 0.15).to(device)
        tokens, states = see(tower, views.pixels)
        loss = sight.loss(tokens, states, views)
        descend(loss, parameters, optimisers)
        step += 1
        with torch.no_grad():
            whole = sight.whole(tokens).mean(1)
            sees = ((whole[:, :KINDS] > 0) == (views.whole[:, :KINDS] > 0)).float().mean()
            apart = (whole - views.whole)[:, KINDS:].abs() * views.whole_care[:, KINDS:]
            kept.append((loss.item(), sees.item(), (apart.sum() / views.whole_care[:, KINDS:].sum() * 3).item()))
        if step % 50 == 0:
            shown = np.mean(kept[-50:], 0)
            print(f"eyes step {step} minutes {share * minutes:.1f} loss {shown[0]:.4f} present {shown[1]:.3f} colour off {shown[2]:.3f}", flush=True)
        if time.time() - saved > 60:
            save()
            saved = time.time()
    save()
