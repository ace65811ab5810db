"""Writes lora/: one tiny random LoRA of fixtures/ckpt/qwen-image in each published
style of keys, and what the transformer predicts with it (diffusers 0.42.1, PEFT 0.21).

    python make_lora.py

`diffusers.safetensors`: `transformer.X.lora_A.weight`, PEFT's alpha in the metadata.
`lightx2v.safetensors`:  `X.lora_down.weight`, `X.alpha`.
`kohya.safetensors`:     `lora_unet_X_with_underscores.lora_down.weight`, `.alpha`.
`expected.safetensors`:  `out` for the inputs of fixtures/components/dit_qwen-image,
                         made by load_lora_weights and fuse_lora(lora_scale=0.7) from each
                         of the three, which must agree; `plain` without a LoRA.
"""

import json
import os

import torch
from diffusers import QwenImagePipeline
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
CHECKPOINT = f"{HERE}/fixtures/ckpt/qwen-image"
RANK, ALPHA, SCALE = 3, 1.5, 0.7
MODULES = [
    "img_in",
    "norm_out.linear",
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.add_k_proj",
    "transformer_blocks.1.attn.to_out.0",
    "transformer_blocks.1.attn.to_add_out",
    "transformer_blocks.1.img_mod.1",
    "transformer_blocks.2.txt_mod.1",
    "transformer_blocks.2.img_mlp.net.0.proj",
    "transformer_blocks.2.txt_mlp.net.2",
]

weights = load_file(f"{CHECKPOINT}/transformer/diffusion_pytorch_model.safetensors")
generator = torch.Generator().manual_seed(5)
diffusers, lightx2v, kohya = {}, {}, {}
for module in MODULES:
    outputs, inputs = weights[f"{module}.weight"].shape
    down = torch.randn(RANK, inputs, generator=generator) * 0.3
    up = torch.randn(outputs, RANK, generator=generator) * 0.3
    diffusers[f"transformer.{module}.lora_A.weight"] = down
    diffusers[f"transformer.{module}.lora_B.weight"] = up
    lightx2v[f"{module}.lora_down.weight"] = down.clone()
    lightx2v[f"{module}.lora_up.weight"] = up.clone()
    lightx2v[f"{module}.alpha"] = torch.tensor(ALPHA)
    flat = "lora_unet_" + module.replace(".", "_")
    kohya[f"{flat}.lora_down.weight"] = down.clone()
    kohya[f"{flat}.lora_up.weight"] = up.clone()
    kohya[f"{flat}.alpha"] = torch.tensor(ALPHA)

os.makedirs(f"{HERE}/lora", exist_ok=True)
adapter = {
    "transformer.r": RANK,
    "transformer.lora_alpha": ALPHA,
    "transformer.target_modules": MODULES,
}
metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(adapter, sort_keys=True)}
save_file(diffusers, f"{HERE}/lora/diffusers.safetensors", metadata=metadata)
save_file(lightx2v, f"{HERE}/lora/lightx2v.safetensors")
save_file(kohya, f"{HERE}/lora/kohya.safetensors")

case = load_file(f"{HERE}/fixtures/components/dit_qwen-image.safetensors")
shape = [tuple(row) for row in case["img_shapes"].tolist()]


def predict(pipe):
    with torch.no_grad():
        return pipe.transformer(
            hidden_states=case["hidden_states"],
            encoder_hidden_states=case["encoder_hidden_states"],
            timestep=case["timestep"],
            img_shapes=[shape, shape],
            return_dict=False,
        )[0]


results = {}
for style in ("plain", "diffusers", "lightx2v", "kohya"):
    pipe = QwenImagePipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    if style != "plain":
        pipe.load_lora_weights(f"{HERE}/lora/{style}.safetensors")
        pipe.fuse_lora(lora_scale=SCALE)
    results[style] = predict(pipe)
for style in ("lightx2v", "kohya"):
    assert (results[style] - results["diffusers"]).abs().max() < 1e-5, style
assert (results["diffusers"] - results["plain"]).abs().max() > 0.1
save_file(
    {"out": results["diffusers"].contiguous(), "plain": results["plain"].contiguous()},
    f"{HERE}/lora/expected.safetensors",
)
