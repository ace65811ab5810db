"""Pictures made of random numbers: the only thing the demo model is fitted to.

`photo_like` imitates the statistics of photographs (occluding shapes of all
sizes, gradients, 1/f noise); `Scene` describes a plain background with a few
named shapes, so that an instruction about a shape has one right answer.
Pictures are float32 arrays of (side, side, 3) in 0..1. No file is read.
"""

from __future__ import annotations

import dataclasses

import numpy as np

COLOURS = {
    "red": (0.92, 0.08, 0.08),
    "green": (0.10, 0.65, 0.20),
    "blue": (0.10, 0.15, 0.92),
    "yellow": (0.97, 0.88, 0.10),
    "orange": (0.97, 0.50, 0.05),
    "purple": (0.55, 0.17, 0.70),
    "pink": (0.97, 0.55, 0.75),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.05),
}
SHAPES = ("circle", "square", "triangle")
# Shapes that are never of these colours in anything that is trained on, nor named so.
HELD_OUT_PAIRS = (("yellow", "circle"), ("purple", "square"), ("green", "triangle"))


@dataclasses.dataclass
class Shape:
    """A shape of one colour; places and sizes in parts of the picture's side."""

    kind: str
    x: float
    y: float
    radius: float
    colour: np.ndarray


# A new shape: how large, and how far from the middle if it is not to be there.
NEW_RADIUS, NEW_ASIDE = 0.15, 0.25


@dataclasses.dataclass
class Scene:
    """A background (`slope` brightens it from top to bottom) and shapes in front of it."""

    background: np.ndarray
    slope: float
    shapes: list[Shape]

    def render(self, side: int) -> np.ndarray:
        """The picture of the scene."""
        _, y = grid(side)
        picture = self.background * (1 + self.slope * (2 * y[..., None] - 1))
        for shape in self.shapes:
            inside = coverage(shape.kind, shape.x, shape.y, shape.radius, side)
            picture = picture * (1 - inside) + shape.colour * inside
        return np.clip(picture, 0, 1).astype(np.float32)


def new_shape(kind: str, place: tuple[int, int], colour: np.ndarray) -> Shape:
    """A shape that is added to a square picture, at a place as in `instructions.PLACES`."""
    return Shape(kind, 0.5 + NEW_ASIDE * place[0], 0.5 + NEW_ASIDE * place[1], NEW_RADIUS, colour)


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the centre of every pixel, (side, side) each, in 0..1."""
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    return np.meshgrid(centres, centres)


def coverage(
    kind: str, x: float, y: float, radius: float, side: int, angle: float = 0.0, stretch: float = 1.0
) -> np.ndarray:
    """How much of each pixel a shape covers: (side, side, 1)."""
    across, down = grid(side)
    across, down = across - x, down - y
    if angle:
        across, down = (
            np.cos(angle) * across + np.sin(angle) * down,
            np.cos(angle) * down - np.sin(angle) * across,
        )
    across = across * stretch
    if kind == "circle":
        distance = np.hypot(across, down) - radius
    elif kind == "square":
        distance = np.maximum(np.abs(across), np.abs(down)) - 0.88 * radius
    else:
        flank = 0.894 * np.abs(across) - 0.447 * down - 0.447 * radius
        distance = np.maximum(flank, down - 0.8 * radius)
    return np.clip(0.5 - distance * side, 0, 1)[..., None].astype(np.float32)


def photo_like(rng: np.random.Generator, side: int) -> np.ndarray:
    """A picture with the statistics of a photograph."""
    picture = _gradient(rng, side)
    if rng.random() < 0.7:
        channels = 3 if rng.random() < 0.4 else 1
        picture = picture + _noise(rng, side, rng.uniform(1.0, 2.0), channels) * rng.uniform(0.02, 0.22)
    smallest, largest = 0.015, rng.uniform(0.1, 0.5)
    for _ in range(rng.choice([0, 3, 8, 20, 40])):
        # Sizes are distributed as radius^-2.5.
        share = rng.random()
        radius = (smallest**-1.5 + share * (largest**-1.5 - smallest**-1.5)) ** (-1 / 1.5)
        radius = min(0.5, radius * rng.uniform(1, 2.5))
        x, y = rng.uniform(-0.1, 1.1, 2)
        kind, stretch = SHAPES[rng.integers(3)], float(np.exp(rng.normal(0, 0.6)))
        inside = coverage(kind, x, y, radius, side, rng.uniform(0, np.pi), stretch)
        fill = _random_colour(rng)
        if rng.random() < 0.3:
            fill = fill + (_gradient(rng, side) - 0.5) * 0.6
        if rng.random() < 0.25:
            fill = fill + _texture(rng, side)
        picture = picture * (1 - inside) + fill * inside
    if rng.random() < 0.3:
        picture = picture * (1 + 0.35 * _noise(rng, side, 2.2, 1))
    for _ in range(rng.choice([0, 0, 1, 1, 3])):
        picture = _soften(picture)
    if rng.random() < 0.3:
        picture = picture + rng.normal(0, rng.uniform(0.005, 0.03), picture.shape)
    if rng.random() < 0.25:
        picture = (picture - picture.mean()) * rng.uniform(0.5, 1.6) + rng.uniform(0.25, 0.7)
    return np.clip(picture, 0, 1).astype(np.float32)


def nearest_name(colour: np.ndarray) -> str:
    """The name whose colour is nearest."""
    return min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - colour).sum())


def random_scene(rng: np.random.Generator, width: float = 1.0, height: float = 1.0, freely: float = 0.0) -> Scene:
    """One to three shapes of different kinds and colours on a plain background.

    `width` and `height` of the picture, in its sides; `freely` is the share of shapes
    whose colour may have no name. Has none of `HELD_OUT_PAIRS`.
    """
    while True:
        scene = any_scene(rng, width, height, freely)
        if scene.shapes and not held_out(scene):
            return scene


def held_out(scene: Scene) -> list[int]:
    """Which shapes of a scene are of a held-out kind and colour."""
    return [i for i, shape in enumerate(scene.shapes) if (nearest_name(shape.colour), shape.kind) in HELD_OUT_PAIRS]


def any_scene(rng: np.random.Generator, width: float = 1.0, height: float = 1.0, freely: float = 0.0) -> Scene:
    """As `random_scene`, with no regard to held-out pairs; perhaps with no shape."""
    names = list(rng.permutation(list(COLOURS)))
    background = _shade(rng, COLOURS[names.pop()])
    if rng.random() < 0.3:
        background = np.clip(rng.uniform(0.2, 1) + rng.normal(0, 0.08, 3), 0, 1).astype(np.float32)
    slope = rng.choice([0.0, 0.0, rng.uniform(-0.12, 0.12)])
    scene = Scene(background, float(slope), [])
    for kind in rng.permutation(SHAPES)[: rng.integers(1, 4)]:
        colour = _shade(rng, COLOURS[names.pop()])
        if rng.random() < freely:
            colour = rng.random(3).astype(np.float32)
        if min(np.abs(colour - c).max() for c in [background, *(s.colour for s in scene.shapes)]) < 0.3:
            continue
        for _ in range(40):
            radius = rng.uniform(0.10, 0.20)
            x = rng.uniform(radius + 0.07, width - radius - 0.07)
            y = rng.uniform(radius + 0.07, height - radius - 0.07)
            apart = [np.hypot(x - s.x, y - s.y) > 1.25 * (radius + s.radius) for s in scene.shapes]
            if all(apart):
                scene.shapes.append(Shape(str(kind), x, y, radius, colour))
                break
    return scene


def pool(seed: int, count: int, side: int) -> np.ndarray:
    """Photo-like pictures and some scenes, as bytes: (count, side, side, 3)."""
    rng = np.random.default_rng(seed)
    pictures = np.empty((count, side, side, 3), np.uint8)
    for index in range(count):
        scene = rng.random() < 0.2
        picture = random_scene(rng).render(side) if scene else photo_like(rng, side)
        pictures[index] = (picture * 255 + 0.5).astype(np.uint8)
    return pictures


def _shade(rng: np.random.Generator, colour: tuple[float, float, float]) -> np.ndarray:
    """A colour that still deserves its name."""
    return np.clip(np.asarray(colour, np.float32) + rng.normal(0, 0.03, 3), 0, 1).astype(np.float32)


def _random_colour(rng: np.random.Generator) -> np.ndarray:
    kind = rng.random()
    if kind < 0.45:  # muted, as most of a photograph is
        return np.clip(rng.random() + rng.normal(0, 0.12, 3), 0, 1).astype(np.float32)
    if kind < 0.55:
        return np.full(3, rng.random(), np.float32)
    return rng.random(3).astype(np.float32)


def _gradient(rng: np.random.Generator, side: int) -> np.ndarray:
    x, y = grid(side)
    angle = rng.uniform(0, 2 * np.pi)
    along = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) / 1.4 + 0.5
    first, last = _random_colour(rng), _random_colour(rng)
    return first + (last - first) * along[..., None]


def _noise(rng: np.random.Generator, side: int, fall: float, channels: int) -> np.ndarray:
    """Noise whose spectrum falls with frequency^-fall; mean 0, deviation 1."""
    spectrum = np.fft.rfft2(rng.normal(size=(channels, side, side)).astype(np.float32))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = 1.0 / side
    noise = np.fft.irfft2(spectrum / frequency**fall, s=(side, side)).astype(np.float32)
    noise -= noise.mean((1, 2), keepdims=True)
    return (noise / (noise.std((1, 2), keepdims=True) + 1e-6)).transpose(1, 2, 0)


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    if rng.random() < 0.6:
        return _noise(rng, side, rng.uniform(0.6, 2.0), 1) * rng.uniform(0.02, 0.16)
    x, y = grid(side)
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(3, 0.28 * side)
    waves = np.sin(2 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y))
    return (waves * rng.uniform(0.02, 0.2))[..., None]


def _soften(picture: np.ndarray) -> np.ndarray:
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
