"""Reads the files back to f32 by published names, for the expected pictures: gguf's `dequantize`, torch's own float8 types
and plain arithmetic. `mistake` plants one of the errors that loaders make, to see that a picture shows it.
"""
import json
from enum import Enum

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import safe_open

import files_comfy, files_gguf, files_scaled

PREFIXES = ("model.diffusion_model.", "diffusion_model.")


class Mistake(Enum):
    SCALE_IGNORED = "scale ignored"
    WRONG_AXIS = "row scales along the columns of square matrices"
    ROTATION_KEPT = "rotation not undone"
    GROUP_DEFAULT = "every rotation in groups of a whole row"
    VISION_QUERIES_SWAPPED = "q and k of the vision tower swapped"
    VISION_VALUES_SWAPPED = "k and v of the vision tower swapped"
    SLICES_SWAPPED = "slices of the patch embedding swapped"
    SLICE_TWICE = "first slice of the patch embedding used twice"
    TEXT_VALUES_SWAPPED = "k and v of the text encoder swapped"


def gguf_tensors(path):
    reader = GGUFReader(path)
    made = {}
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        made[tensor.name] = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float().reshape(shape)
    return made


def stored(path):
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}


def unprefixed(tensors):
    for prefix in PREFIXES:
        if sum(name.startswith(prefix) for name in tensors) > 5:
            tensors = {name.removeprefix(prefix): values for name, values in tensors.items()}
    return tensors


SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
SAID = ("scale_input", "input_scale", "comfy_quant")


def scaled(values, scale, kind, mistake):
    if mistake is Mistake.SCALE_IGNORED:
        return values
    if kind == "weight_scale_inv":
        whole = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
        return values * whole[:values.shape[0], :values.shape[1]]
    if scale.numel() == 1:
        return values * scale.reshape(())
    if mistake is Mistake.WRONG_AXIS and values.shape[0] == values.shape[1]:
        return values * scale.reshape(1, -1)
    return values * scale.reshape(-1, 1)


def unrotated(values, said, mistake):
    if not said.get("convrot") or mistake is Mistake.ROTATION_KEPT:
        return values
    group = said.get("convrot_groupsize", 256)
    if mistake is Mistake.GROUP_DEFAULT:
        group = values.shape[1]
    return files_scaled.rotated(values, group)


def transformer(path, mistake=None):
    """A transformer's weights from any of the files."""
    if path.endswith(".gguf"):
        tensors = unprefixed(gguf_tensors(path))
        return {k: v for k, v in tensors.items() if k != "__index_timestep_zero__"}
    return decoded(unprefixed(stored(path)[0]), mistake)


def decoded(tensors, mistake=None):
    made = {}
    for name, values in tensors.items():
        last = name.rsplit(".", 1)[-1]
        if name in ("scaled_fp8", "__index_timestep_zero__") or last in SCALES + SAID:
            continue
        stem = name.removesuffix(".weight")
        made[name] = values.float()
        for kind in SCALES:
            if name.endswith(".weight") and f"{stem}.{kind}" in tensors:
                made[name] = scaled(made[name], tensors[f"{stem}.{kind}"].float(), kind, mistake)
        if f"{stem}.comfy_quant" in tensors and name.endswith(".weight"):
            said = json.loads(bytes(tensors[f"{stem}.comfy_quant"].tolist()).rstrip(b"\0"))
            made[name] = unrotated(made[name], said, mistake)
    return made


def text_encoder(path, mistake=None):
    tensors = gguf_tensors(path)
    if mistake is Mistake.TEXT_VALUES_SWAPPED:
        tensors = {swapped(k, "attn_k.", "attn_v."): v for k, v in tensors.items()}
    back = [(theirs, ours) for ours, theirs in files_gguf.TEXT]
    # `output.` is the head only at the start of a name, and `output_norm.` is not it.
    return {"lm_head.weight" if k == "output.weight" else files_gguf.renamed(k, ordered(back)): v for k, v in tensors.items()}


def ordered(pairs):
    """Longer names first, so that `attn_q` does not take the start of `attn_q_norm`; heads are not renamed here."""
    return sorted((p for p in pairs if p[0] != "output."), key=lambda p: -len(p[0]))


def swapped(name, one, other):
    return name.replace(one, "\0").replace(other, one).replace("\0", other)


def mmproj(path, mistake=None):
    tensors = gguf_tensors(path)
    for kind, one, other in ((Mistake.VISION_QUERIES_SWAPPED, "attn_q.", "attn_k."), (Mistake.VISION_VALUES_SWAPPED, "attn_k.", "attn_v.")):
        if mistake is kind:
            tensors = {swapped(k, one, other): v for k, v in tensors.items()}
    slices = [tensors.pop("v.patch_embd.weight"), tensors.pop("v.patch_embd.weight.1")]
    if mistake is Mistake.SLICES_SWAPPED:
        slices.reverse()
    if mistake is Mistake.SLICE_TWICE:
        slices[1] = slices[0]
    made = {"visual.patch_embed.proj.weight": torch.stack(slices, 2)}
    back = ordered([(theirs, ours) for ours, theirs in files_gguf.VISION])
    for name, values in tensors.items():
        if ".attn_q." in name:
            joined = torch.cat([tensors[name.replace("attn_q", f"attn_{letter}")] for letter in "qkv"])
            made[files_gguf.renamed(name.replace("attn_q", "attn.qkv"), back)] = joined
        elif ".attn_k." not in name and ".attn_v." not in name:
            made[files_gguf.renamed(name, back)] = values
    return made


def from_wan(tensors, published):
    """By the rule the other way round: each published name's Wan name must be there, and none besides."""
    made = {name: tensors[files_comfy.wan_name(name)].float() for name in published}
    assert len(made) == len(tensors)
    return made


def part(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
