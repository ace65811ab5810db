"""Writes fp8.safetensors: the picture of case edit_cfg as diffusers makes it, and the
latents after its first step, with the of the transformer's blocks in 8-bit floats (diffusers 0.42.1, torch 2.11).

    python make_fp8.py

torch's own float8_e4m3fn rounds; each row has the least power of two as its scale that
keeps it within 448. "fp8-weights" rounds the matrices, "fp8" what they multiply, too.
"""

import pathlib

import torch
from safetensors.torch import save_file

import verify

HERE = pathlib.Path(__file__).parent
FIXTURES = str(HERE / "fixtures")


def rounded(x):
    largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    scale = torch.exp2(torch.ceil(torch.log2(largest / 448)))
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def layers(pipeline):
    for name, module in pipeline.transformer.transformer_blocks.named_modules():
        if isinstance(module, torch.nn.Linear) and "_mod." not in name:
            yield module


meta, _ = verify.load_case(FIXTURES, "edit_cfg")
made = {}
for kind in ("fp8-weights", "fp8"):
    pipeline = verify.make_pipe(FIXTURES, meta)
    verify.fix_mrope(pipeline)
    for layer in layers(pipeline):
        layer.weight.data = rounded(layer.weight.data)
        if kind == "fp8":
            layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    image, latents = verify.run(pipeline, FIXTURES, meta)
    made[f"{kind}.image"] = torch.from_numpy(image)
    made[f"{kind}.step0.latents"] = latents[0]
save_file(made, HERE / "fp8.safetensors")
