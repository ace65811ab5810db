"""Writes lora/: one tiny random LoRA of fixtures/ckpt/qwen-image in each published
style of keys, and what the transformer predicts with it (diffusers 0.42.1, PEFT 0.21).

    python make_lora.py

`diffusers.safetensors`: `transformer.X.lora_A.weight`, PEFT's alpha in the metadata.
`lightx2v.safetensors`:  `X.lora_down.weight`, `X.alpha`.
`kohya.safetensors`:     `lora_unet_X_with_underscores.lora_down.weight`, `.alpha`.
`adapter.safetensors`:   PEFT's keys, `base_model.model.X.lora_A.weight`, of two ranks.
`cases.json`:            configurations and alphas to go with the last, and how: `peft` beside
                         the file (adapter_config.json), `header` in diffusers' metadata,
                         `alphas` as numbers in the file. `cases.safetensors` has what PEFT
                         (`PeftModel`, merged) or diffusers (loaded and fused) predicts.
`expected.safetensors`:  `out` for the inputs of fixtures/components/dit_qwen-image,
                         made by load_lora_weights and fuse_lora(lora_scale=0.7) from each
                         of the three, which must agree; `plain` without a LoRA.
"""

import json
import os
import tempfile

import torch
from diffusers import QwenImagePipeline
from peft import PeftModel
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


# What PEFT's configuration can say.
SMALL = ["img_in", *(f"transformer_blocks.{block}.attn.{name}" for block in (0, 1)
                     for name in ("to_q", "to_k", "to_v", "to_out.0"))]
adapter = {}
for module in SMALL:
    outputs, inputs = weights[f"{module}.weight"].shape
    rank = 2 if module.endswith("to_q") else 4
    adapter[f"{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.3
    adapter[f"{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.3
save_file({f"base_model.model.{key}": value for key, value in adapter.items()},
          f"{HERE}/lora/adapter.safetensors", metadata={"format": "pt"})

BASE = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "rank_pattern": {"to_q": 2},
        "target_modules": ["img_in", "to_q", "to_k", "to_v", "to_out.0"], "bias": "none",
        "base_model_name_or_path": None, "modules_to_save": None, "inference_mode": True}
PATTERNS = {"alpha_pattern": {"^img_in": 8, r"transformer_blocks\.[01]\.attn\.to_(k|v)": 1,
                              "attn.to_k": 64, "1.attn.to_out.0": 16, "o_q": 32}}
CASES = [
    ("peft", "plain", {}, None),
    ("peft", "rooted", {"use_rslora": True}, None),
    ("peft", "patterns", PATTERNS, None),
    ("peft", "rooted_patterns", {**PATTERNS, "use_rslora": True}, None),
    ("peft", "fan_in_fan_out", {"fan_in_fan_out": True}, None),
    ("peft", "regular_targets", {"target_modules": r".*\.to_[qk]|img_in"}, None),
    ("peft", "excluded", {"exclude_modules": ["0.attn.to_q", "img_in"]}, None),
    ("peft", "one_layer", {"layers_to_transform": [1], "layers_pattern": "transformer_blocks"}, None),
    ("peft", "alpha_by_default", {"lora_alpha": None}, None),
    ("header", "header", {}, None),
    ("header", "header_patterns", {**PATTERNS, "use_rslora": True}, None),
    ("header", "header_and_alphas", {}, {"img_in": [2.0, "float32"], SMALL[1]: [1.0, "float32"]}),
    ("alphas", "integers", {}, {module: [3, "int64"] for module in SMALL}),
    ("alphas", "some", {}, {"img_in": [2, "int32"], SMALL[2]: [0.5, "float64"],
                            SMALL[3]: [1.5, "bfloat16"], SMALL[4]: [0, "int64"],
                            "transformer_blocks.9.attn.to_q": [4.0, "float16"]}),
]


def alpha_tensors(alphas):
    return {f"{module}.alpha": torch.tensor([value], dtype=getattr(torch, dtype))
            if index % 2 else torch.tensor(value, dtype=getattr(torch, dtype))
            for index, (module, (value, dtype)) in enumerate(alphas.items())}


def with_case(kind, config, alphas, folder):
    pipe = QwenImagePipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    if kind == "peft":
        save_file({f"base_model.model.{key}": value for key, value in adapter.items()},
                  f"{folder}/adapter_model.safetensors", metadata={"format": "pt"})
        with open(f"{folder}/adapter_config.json", "w") as file:
            json.dump(config, file)
        model = PeftModel.from_pretrained(pipe.transformer, folder)
        pipe.transformer = model.merge_and_unload()
        return pipe
    tensors = {**adapter, **alpha_tensors(alphas or {})}
    metadata = {"format": "pt"}
    if kind == "header":
        header = {f"transformer.{key}": value for key, value in config.items()}
        metadata["lora_adapter_metadata"] = json.dumps(header)
    # diffusers looks for its prefix where there are no alphas.
    prefix = "" if alphas else "transformer."
    save_file({f"{prefix}{key}": value for key, value in tensors.items()},
              f"{folder}/lora.safetensors", metadata=metadata)
    pipe.load_lora_weights(f"{folder}/lora.safetensors")
    pipe.fuse_lora(lora_scale=1.0)
    return pipe


documents, outputs = [], {}
for kind, name, change, alphas in CASES:
    config = {key: value for key, value in {**BASE, **change}.items()
              if value is not None or key in ("base_model_name_or_path", "modules_to_save")}
    with tempfile.TemporaryDirectory() as folder:
        # Every fourth token: they are many cases.
        outputs[name] = predict(with_case(kind, config, alphas, folder))[:, ::4].contiguous()
    documents.append({"kind": kind, "name": name, "config": config, "alphas": alphas or {}})
    print(name, (outputs[name] - results["plain"][:, ::4]).abs().max().item())
with open(f"{HERE}/lora/cases.json", "w") as file:
    json.dump(documents, file, indent=1)
save_file(outputs, f"{HERE}/lora/cases.safetensors")
