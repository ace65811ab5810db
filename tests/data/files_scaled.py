"""Safetensors files with 8-bit matrices: fp8 in the spellings that are about, and int8 by rows with and without a rotation.

Here they are written; `files_read.py` reads them back with plain torch for the expected pictures.
"""
import json

import torch

from files_model import save

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PREFIX = "model.diffusion_model."


def linear(name, values):
    """Whether these files quantise a tensor: the matrices of blocks."""
    return name.startswith("transformer_blocks.") and values.ndim == 2


def layer(name):
    return name.removesuffix(".weight")


def to_fp8(values, scale):
    return (values.float() / scale).clamp(-448, 448).to(E4M3)


def tensor_scale(values):
    return values.float().abs().max() / 448


def uneven_row_scales(values, generator):
    """Row scales up to 64 times the least possible: they differ from row to row while the weights stay alike."""
    spread = 2.0 ** torch.randint(0, 7, (values.shape[0], 1), generator=generator)
    return values.float().abs().amax(1, keepdim=True) / 448 * spread


def marker():
    return torch.zeros(0)


def json_bytes(value, pad):
    data = json.dumps(value).encode()
    return torch.tensor(list(data + b"\0" * pad), dtype=torch.uint8)


# ---- fp8 -----------------------------------------------------------------------------------------------------------
def plain_e4m3(weights):
    return {k: v.to(E4M3) for k, v in weights.items()}


def plain_e5m2(weights):
    return {k: v.to(E5M2) if linear(k, v) else v for k, v in weights.items()}


def scaled_old(weights, is_linear=linear, prefix=PREFIX, marker_of_fp8=torch.zeros(2, dtype=E4M3), shape=(1,)):
    """`scaled_fp8`, `scale_weight`, and `scale_input` of 1.0, which stands for nothing."""
    made = {f"{prefix}scaled_fp8": marker_of_fp8}
    for name, values in weights.items():
        if is_linear(name, values):
            scale = tensor_scale(values)
            made[f"{prefix}{name}"] = to_fp8(values, scale)
            made[f"{prefix}{layer(name)}.scale_weight"] = scale.reshape(shape)
            made[f"{prefix}{layer(name)}.scale_input"] = torch.ones(shape)
        else:
            made[f"{prefix}{name}"] = values
    return made


ROWS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_v_proj", "img_mlp.net.2", "img_mlp.net.0.proj"]
KEPT = ["attn.add_q_proj", "txt_mod.1"]
FULL_PRECISION = "img_mlp.net.2"
ONE_AXIS = ["attn.to_q", "attn.to_out.0"]        # scales stored [out] and not [out,1]


def inner(name):
    return layer(name).split(".", 2)[2]


def scaled_new(weights, prefix, generator):
    """`weight_scale` by tensor or by row, and what is said of each layer."""
    made, layers = {}, {}
    for name, values in weights.items():
        if not linear(name, values) or inner(name) in KEPT:
            made[f"{prefix}{name}"] = values
            continue
        by_row = inner(name) in ROWS
        scale = uneven_row_scales(values, generator) if by_row else tensor_scale(values)
        made[f"{prefix}{name}"] = to_fp8(values, scale)
        made[f"{prefix}{layer(name)}.weight_scale"] = scale.reshape(-1) if inner(name) in ONE_AXIS else scale
        layers[layer(name)] = {"format": "float8_e4m3fn"}
        if inner(name) == FULL_PRECISION:
            layers[layer(name)]["full_precision_matrix_mult"] = True
    return made, layers


def mixed_metadata(weights, generator):
    """The tensors are prefixed, the layers named in the header are not."""
    made, layers = scaled_new(weights, "diffusion_model.", generator)
    return made, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def comfy_quant(weights, generator):
    """One layer is e5m2 with a scale; every second description is padded with NULs."""
    made, layers = scaled_new(weights, "", generator)
    five = "transformer_blocks.0.attn.add_k_proj"
    scale = weights[f"{five}.weight"].float().abs().max() / 57344
    made[f"{five}.weight"] = (weights[f"{five}.weight"].float() / scale).to(E5M2)
    made[f"{five}.weight_scale"] = scale
    layers[five] = {"format": "float8_e5m2"}
    for index, (name, said) in enumerate(layers.items()):
        made[f"{name}.comfy_quant"] = json_bytes(said, 5 * (index % 2))
    return made


def modelopt(weights, generator):
    """`weight_scale` and a calibrated `input_scale` by tensor of every matrix, nothing else."""
    made = {}
    for name, values in weights.items():
        made[name] = values
        if values.ndim == 2:
            made[name] = to_fp8(values, tensor_scale(values))
            made[f"{layer(name)}.weight_scale"] = tensor_scale(values)
            made[f"{layer(name)}.input_scale"] = torch.rand((), generator=generator) * 0.05 + 0.01
    return made


def each_block(values, size=128):
    for row in range(0, values.shape[0], size):
        for column in range(0, values.shape[1], size):
            yield row, column, values[row:row + size, column:column + size]


def block_scale_inv(weights, generator):
    """`weight_scale_inv` of every matrix for each 128x128 block, the last ones partial; scales differ from block to block."""
    made = {}
    for name, values in weights.items():
        made[name] = values
        if values.ndim == 2:
            scales = torch.zeros(-(-values.shape[0] // 128), -(-values.shape[1] // 128))
            made[name] = torch.zeros(values.shape, dtype=torch.float32)
            for row, column, block in each_block(values):
                scale = tensor_scale(block) * 2.0 ** torch.randint(0, 5, (), generator=generator)
                scales[row // 128, column // 128] = scale
                made[name][row:row + 128, column:column + 128] = block.float() / scale
            made[name] = made[name].clamp(-448, 448).to(E4M3)
            made[f"{layer(name)}.weight_scale_inv"] = scales
    return made


NORM = "transformer_blocks.0.attn.norm_added_q.weight"


def unknown(weights):
    """A few tensors of a transformer, one layer in a format that is not read."""
    made = {k: v for k, v in weights.items() if k in ("txt_norm.weight", "img_in.weight", "img_in.bias")}
    made[NORM] = weights[NORM]
    name = "transformer_blocks.0.attn.to_q"
    made[f"{name}.weight"] = torch.zeros(64, 32, dtype=torch.uint8)
    made[f"{name}.weight_scale"] = torch.ones(64, 4).to(E4M3)
    made[f"{name}.weight_scale_2"] = torch.ones(())
    made[f"{name}.comfy_quant"] = json_bytes({"format": "nvfp4"}, 0)
    return made


# ---- int8 ----------------------------------------------------------------------------------------------------------
H4 = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2


def rotation(group):
    made = torch.ones(1, 1)
    while made.shape[0] < group:
        made = torch.kron(made, H4)
    assert made.shape[0] == group
    return made


def rotated(values, group):
    return (values.float().reshape(values.shape[0], -1, group) @ rotation(group)).reshape(values.shape)


def int8_rows(values):
    scale = values.float().abs().amax(1, keepdim=True) / 127
    return torch.round(values.float() / scale).clamp(-127, 127).to(torch.int8), scale


def int8(weights, said_of):
    """`said_of` gives the description of a layer; its rotation is made before rounding."""
    made = {}
    for name, values in weights.items():
        if not linear(name, values):
            made[name] = values
            continue
        said = said_of(name, values)
        if said.get("convrot"):
            values = rotated(values, said.get("convrot_groupsize", 256))
        made[name], made[f"{layer(name)}.weight_scale"] = int8_rows(values)
        made[f"{layer(name)}.comfy_quant"] = json_bytes(said, 0)
    return made


def plain_rows(name, values):
    return {"format": "int8_tensorwise", "per_row": True}


def convrot_rows(name, values):
    """Groups of 64 or 256 as long as the rows; one of 16, one left to the default of 256, one layer not rotated."""
    said = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": values.shape[1]}
    if inner(name) == "img_mlp.net.0.proj":
        said["convrot_groupsize"] = 16
    if inner(name) == "txt_mlp.net.2":
        del said["convrot_groupsize"]
    if inner(name) == "attn.to_v":
        said = {"format": "int8_tensorwise"}
    return said


def write_scaled(out, weights):
    generator = torch.Generator().manual_seed(11)
    save(plain_e4m3(weights), f"{out}/fp8/plain_e4m3.safetensors")
    save(plain_e5m2(weights), f"{out}/fp8/plain_e5m2.safetensors")
    save(scaled_old(weights), f"{out}/fp8/scaled_old.safetensors")
    made, metadata = mixed_metadata(weights, generator)
    save(made, f"{out}/fp8/mixed_metadata.safetensors", metadata)
    save(comfy_quant(weights, generator), f"{out}/fp8/comfy_quant.safetensors")
    save(modelopt(weights, generator), f"{out}/fp8/modelopt.safetensors")
    save(block_scale_inv(weights, generator), f"{out}/fp8/block_scale_inv.safetensors")
    save(unknown(weights), f"{out}/fp8/unknown.safetensors")
    save(int8(weights, plain_rows), f"{out}/int8/rows.safetensors")
    save(int8(weights, convrot_rows), f"{out}/int8/convrot.safetensors")
