"""ComfyUI's `models/` folder and a file with everything in one, from the tiny weights."""
import torch

from files_model import save
from files_scaled import E4M3, PREFIX, linear, marker, scaled_old

# diffusers' part of a VAE's name -> Wan's, in this order (rules: name_conversion.cpp of stable-diffusion.cpp).
OUTER = {"quant_conv.": "conv1.", "post_quant_conv.": "conv2."}
CODER = {"conv_in.": "conv1.", "norm_out.": "head.0.", "conv_out.": "head.2."}
MIDDLE = {"resnets.0.": "middle.0.residual.", "attentions.0.": "middle.1.", "resnets.1.": "middle.2.residual."}
RESIDUAL = {"norm1.": "0.", "conv1.": "2.", "norm2.": "3.", "conv2.": "6."}


def replaced_start(name, pairs):
    for ours, theirs in pairs.items():
        if name.startswith(ours):
            return theirs + name[len(ours):]
    return name


def residual(stem, rest):
    if rest.startswith("conv_shortcut."):
        return f"{stem}shortcut.{rest.removeprefix('conv_shortcut.')}"
    return f"{stem}residual.{replaced_start(rest, RESIDUAL)}"


def down_name(rest):
    index, rest = rest.split(".", 1)
    stem = f"downsamples.{index}."
    return stem + rest if rest.startswith(("resample", "time_conv")) else residual(stem, rest)


def up_name(rest):
    block, kind, index, rest = rest.split(".", 3)
    if kind == "upsamplers":
        return f"upsamples.{4 * int(block) + 3}.{rest}"
    return residual(f"upsamples.{4 * int(block) + int(index)}.", rest)


def middle_name(rest):
    name = replaced_start(rest, MIDDLE)
    stem, found, last = name.partition(".residual.")
    return f"{stem}.residual.{replaced_start(last, RESIDUAL)}" if found else name


def wan_name(name):
    """The name in a Wan-named file of a tensor of AutoencoderKLQwenImage."""
    if not name.startswith(("encoder.", "decoder.")):
        return replaced_start(name, OUTER)
    coder, rest = name.split(".", 1)
    for start, rule in (("down_blocks.", down_name), ("up_blocks.", up_name), ("mid_block.", middle_name)):
        if rest.startswith(start):
            return f"{coder}.{rule(rest.removeprefix(start))}"
    return f"{coder}.{replaced_start(rest, CODER)}"


def wan(weights):
    return {wan_name(k): v for k, v in weights.items()}


def text_linear(name, values):
    """The linears that the fp8 encoder scales: not embeddings, patch embedding or head."""
    return name.endswith(".weight") and values.ndim == 2 and "embed_tokens" not in name and not name.startswith("lm_head")


def without_head(weights):
    return {k: v for k, v in weights.items() if not k.startswith("lm_head")}


def lora(weights, generator):
    made = {}
    for name in ("attn.to_q", "attn.to_v"):
        rows, columns = weights[f"transformer_blocks.0.{name}.weight"].shape
        stem = f"transformer_blocks.0.{name}"
        made[f"{stem}.lora_down.weight"] = (torch.randn(4, columns, generator=generator) / 8).bfloat16()
        made[f"{stem}.lora_up.weight"] = (torch.randn(rows, 4, generator=generator) / 8).bfloat16()
        made[f"{stem}.alpha"] = torch.tensor(4.0)
    return made


def write_comfy(out, transformer, text, vae):
    """No file's name tells what it is."""
    comfy = f"{out}/comfy"
    save({**transformer, "__index_timestep_zero__": marker()}, f"{comfy}/diffusion_models/a.safetensors")
    save(scaled_old(without_head(text), text_linear, "", torch.zeros(0, dtype=E4M3), ()),
         f"{comfy}/text_encoders/b.safetensors")
    save(wan(vae), f"{comfy}/vae/c.safetensors")
    save(lora(transformer, torch.Generator().manual_seed(12)), f"{comfy}/loras/d.safetensors")


def write_all_in_one(out, transformer, text, vae):
    """The matrices of the transformer's blocks cast to e4m3, as in files of 28 GB of this kind; all else bf16."""
    everything = {f"{PREFIX}{k}": v.to(E4M3) if linear(k, v) else v for k, v in transformer.items()}
    everything[f"{PREFIX}__index_timestep_zero__"] = marker()
    everything |= {f"text_encoders.qwen25_7b.transformer.{k}": v for k, v in without_head(text).items()}
    everything |= {f"vae.{k}": v for k, v in wan(vae).items()}
    save(everything, f"{out}/all_in_one.safetensors")
