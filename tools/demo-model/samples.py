#!/usr/bin/env python3
"""Before and after, made by a running server: the picture of QUICKSTART.

    python samples.py --out ../../docs/demo.png [--url http://127.0.0.1:8000/v1]
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
from PIL import Image, ImageDraw

import evaluate
import pictures

PROMPTS = ("make it black and white", "make it sepia", "invert the colors", "make it warmer", "add a blue tint", "blur it", "mirror it")
SCENE_PROMPTS = (
    "change the background to green", "make the circle yellow", "remove the square", "add a green triangle at the top right",
    "make the circle bigger", "make the square smaller",
)  # fmt: skip


def scene() -> np.ndarray:
    """A red circle and a blue square on a light ground."""
    colours = {name: np.array(colour, np.float32) for name, colour in pictures.COLOURS.items()}
    shapes = [
        pictures.Shape("circle", 0.3, 0.35, 0.18, colours["red"]), pictures.Shape("square", 0.7, 0.65, 0.18, colours["blue"]),
    ]  # fmt: skip
    return evaluate.to_bytes(pictures.Scene(np.array([0.93, 0.9, 0.82], np.float32), 0.0, shapes).render(evaluate.SIDE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    photograph, drawing = evaluate.photographs()[1], scene()
    shown = [("before", photograph), *((p, evaluate.ask(options.url, photograph, p, 1)[0]) for p in PROMPTS)]
    shown += [("before", drawing), *((p, evaluate.ask(options.url, drawing, p, 1)[0]) for p in SCENE_PROMPTS)]
    side, gap, label, columns = evaluate.SIDE, 10, 16, 4
    rows = (len(shown) + columns - 1) // columns
    image = Image.new("RGB", (columns * (side + 56 + gap), rows * (side + label + gap)), "white")
    draw = ImageDraw.Draw(image)
    for index, (words, picture) in enumerate(shown):
        left, top = index % columns * (side + 56 + gap) + gap, index // columns * (side + label + gap)
        draw.text((left, top + 2), words, fill="black")
        image.paste(Image.fromarray(picture), (left, top + label))
    image.save(options.out, optimize=True)


if __name__ == "__main__":
    main()
