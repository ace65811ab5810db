#!/usr/bin/env python3
"""Holds a running server's edits against diffusers' own pipeline on the same checkpoint.

    python compare_with_diffusers.py [--url http://127.0.0.1:8000/v1] [--checkpoint ../../assets/demo] [--exact]

The server must compute in float32 (as it does on a CPU). Same picture, prompt and
seed on either side; the greatest difference must be 1 level, the mean 0.01.
The pipeline is unmodified but for two arguments: its area (1024 · 1024 is a
constant in it), and the processor's `mm_token_type_ids`, without which the
installed transformers gives the picture's tokens plain positions (diffusers issue
14194). With `--plain` the second is left out; then small differences are expected.
With `--exact` its transformer computes in 64 bits.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as pipeline_module
import numpy as np
import torch
from diffusers import QwenImageEditPipeline
from PIL import Image

import evaluate
import export
import samples

PROMPTS = ("invert the colors", "mirror it", "blur it", "turn red into blue", "leave it as it is", "make the circle green",
           "add a blue triangle at the bottom left", "make the circle bigger")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--checkpoint", type=pathlib.Path, default=pathlib.Path(__file__).parent / "../../assets/demo")
    parser.add_argument("--plain", action="store_true", help="plain positions, as the installed libraries have them")
    parser.add_argument("--exact", action="store_true", help="the reference's transformer in 64 bits: its own 32 bits show at drawn edges")
    options = parser.parse_args()
    pipeline = QwenImageEditPipeline.from_pretrained(options.checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    dimensions = pipeline_module.calculate_dimensions
    pipeline_module.calculate_dimensions = lambda _area, ratio: dimensions(export.IMAGE_AREA, ratio)
    if not options.plain:
        pipeline.text_encoder.register_forward_pre_hook(_with_token_types, with_kwargs=True)
    if options.exact:
        pipeline.transformer.forward = _in_64_bits(pipeline.transformer)
    worst = (0, 0.0)
    squares = evaluate.photographs()
    for seed, prompt in enumerate(PROMPTS):
        picture = samples.scene() if "circle" in prompt else squares[seed]
        mine = pipeline(
            image=Image.fromarray(picture), prompt=prompt, num_inference_steps=export.STEPS, true_cfg_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]  # fmt: skip
        served, _ = evaluate.ask(options.url, picture, prompt, seed)
        difference = np.abs(np.asarray(mine).astype(int) - served.astype(int))
        print(f"{prompt!r}: greatest difference {difference.max()}, mean {difference.mean():.5f}", flush=True)
        worst = max(worst[0], int(difference.max())), max(worst[1], float(difference.mean()))
    return 0 if worst[0] <= 1 and worst[1] <= 0.01 else 1


def _in_64_bits(transformer):
    forward = transformer.double().forward
    # The pipeline asks for the transformer's format, and makes its inputs of it.
    widened = lambda value: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
    return lambda **arguments: (forward(**{name: widened(value) for name, value in arguments.items()})[0].float(),)


def _with_token_types(model, arguments, keywords):
    ids = keywords["input_ids"]
    return arguments, {**keywords, "mm_token_type_ids": (ids == model.config.image_token_id).int()}


if __name__ == "__main__":
    sys.exit(main())
