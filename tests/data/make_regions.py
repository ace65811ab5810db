"""Writes regions.safetensors: parts of pictures cut out, filled into a size and laid
back, as diffusers' VaeImageProcessor does it (diffusers 0.42.1, Pillow 13.0).

    python make_regions.py

Case K: `K.image` (h, w, 3), `K.mask` (h, w), `K.numbers` (width, height, padding, and the
region: left, top, right, bottom), `K.filled` and `K.filled_mask` (the part in that size),
`K.repainted` (a picture of that size), `K.out` (laid into the image). `rgba.K.in`, `.out`:
pictures with transparency, resized with Lanczos.
"""

import os
import random

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
processor = VaeImageProcessor(vae_scale_factor=16)
mask_processor = VaeImageProcessor(
    vae_scale_factor=16, do_normalize=False, do_binarize=True, do_convert_grayscale=True
)
generator, numpy_generator = random.Random(11), np.random.default_rng(11)
tensors = {}


def noise(*shape):
    return numpy_generator.integers(0, 256, shape, dtype=np.uint8)


for case in range(10):
    width, height = generator.randint(20, 48), generator.randint(20, 48)
    mask = np.zeros((height, width), np.uint8)
    left, top = generator.randrange(width - 2), generator.randrange(height - 2)
    right, bottom = generator.randint(left + 1, width), generator.randint(top + 1, height)
    mask[top:bottom, left:right] = noise(bottom - top, right - left) | 1
    if case % 2:
        mask[mask > 0] = 255
    size = (16 * generator.randint(1, 4), 16 * generator.randint(1, 4))
    padding = generator.choice([0, 1, 3, 9])
    image, mask = Image.fromarray(noise(height, width, 3)), Image.fromarray(mask)
    region = processor.get_crop_region(mask, *size, pad=padding)
    repainted = Image.fromarray(noise(size[1], size[0], 3))
    filled = processor.resize(image.crop(region), size[1], size[0], resize_mode="fill")
    filled_mask = mask_processor.resize(mask.crop(region), size[1], size[0], resize_mode="fill")
    out = processor.apply_overlay(mask, image, repainted, region)
    for name, picture in {
        "image": image,
        "mask": mask,
        "filled": filled,
        "filled_mask": filled_mask.convert("L"),
        "repainted": repainted,
        "out": out,
    }.items():
        tensors[f"{case}.{name}"] = torch.from_numpy(np.asarray(picture).copy())
    tensors[f"{case}.numbers"] = torch.tensor([*size, padding, *region])

for case in range(4):
    width, height = generator.randint(8, 40), generator.randint(8, 40)
    picture = noise(height, width, 4)
    picture[..., 3][noise(height, width) < 80] = 0
    picture[..., 3][noise(height, width) < 80] = 255
    size = (generator.randint(6, 50), generator.randint(6, 50))
    resized = Image.fromarray(picture).resize(size, Image.LANCZOS)
    tensors[f"rgba.{case}.in"] = torch.from_numpy(picture)
    tensors[f"rgba.{case}.out"] = torch.from_numpy(np.asarray(resized).copy())
save_file(tensors, f"{HERE}/regions.safetensors")
