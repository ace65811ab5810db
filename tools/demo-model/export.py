"""Puts the fitted parts together and writes a checkpoint in the published layout, in 16 bits."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPipeline
from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

import autoencoder
import text_encoder
import transformer

IMAGE_AREA = 128 * 128
SIZE_MULTIPLE = 8  # two tokens: mirroring needs an even number of columns
STEPS = 4
# A little over 112 · 112: at most 16 tokens of the picture, for the division to be rounded down.
ENCODER_PIXELS = 12600
DESCRIPTION = (
    "A small demonstration model of the Qwen-Image-Edit classes, for pictures of 128x128 pixels. It knows a fixed list of "
    "instructions; of plain pictures it also sees which colour the circle, the square or the triangle has, and it can draw one. "
    "Anything else mostly leaves the picture as it is."
)
SCHEDULE = dict(
    base_image_seq_len=256, base_shift=0.5, max_image_seq_len=8192, max_shift=0.9, num_train_timesteps=1000, shift=1.0,
    shift_terminal=0.02, time_shift_type="exponential", use_dynamic_shifting=True,
)  # fmt: skip
# Shown to users: one phrase for every task.
EXAMPLES = [
    "make it black and white", "make it sepia", "invert the colors", "make it brighter", "make it darker",
    "more contrast", "less contrast", "make it warmer", "make it cooler", "add a red tint", "add a green tint",
    "add a blue tint", "give it a vintage look", "blur it", "mirror it", "change the background to green",
    "turn the red circle blue", "remove the yellow square", "make the circle red", "remove the square", "add a blue triangle",
    "add a red circle at the top left", "make the circle bigger", "make the circle smaller", "leave it as it is",
]  # fmt: skip


def assemble(work: pathlib.Path) -> QwenImageEditPipeline:
    """The pipeline of the fitted parts in `work`, in 32 bits."""
    pool = np.load(work / "pool.npy", mmap_mode="r")
    codec = autoencoder.LineCodec()
    codec.load_state_dict(torch.load(work / "codec.pt"))
    vae = autoencoder.build(codec, pool)
    tokenizer, pupil = text_encoder.build_tokenizer(work / "tokenizer"), text_encoder.load_trained(work)
    limits = {"shortest_edge": 3136, "longest_edge": ENCODER_PIXELS}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=limits), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor()
    )
    return QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE), vae=vae, text_encoder=pupil.encoder, tokenizer=tokenizer,
        processor=processor, transformer=transformer.build(vae, pupil.reader, pool),
    )  # fmt: skip


def export(work: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the checkpoint of `work` to the folder `out`."""
    pipeline = assemble(work)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        part.half()
    shutil.rmtree(out, ignore_errors=True)
    pipeline.save_pretrained(out, safe_serialization=True)
    shutil.copytree(work / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    # The class's own default, under a name that the published files do not have.
    file = out / "text_encoder/config.json"
    config = json.loads(file.read_text())
    config["vision_config"].pop("rope_parameters", None)
    file.write_text(json.dumps(config, indent=2) + "\n")
    preprocessor = json.loads((out / "processor/processor_config.json").read_text())["image_processor"]
    preprocessor |= dict(processor_class="Qwen2VLProcessor", merge_size=2, min_pixels=3136, max_pixels=ENCODER_PIXELS)
    (out / "processor/preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    defaults = dict(
        description=DESCRIPTION, image_area=IMAGE_AREA, size_multiple=SIZE_MULTIPLE, num_inference_steps=STEPS,
        true_cfg_scale=1.0, negative_prompt=" ", dtype="float32", instructions=EXAMPLES,
    )  # fmt: skip
    (out / "diffuser.json").write_text(json.dumps(defaults, indent=2) + "\n")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB", flush=True)
