"""The tiny Qwen-Image-Edit-2511 of tests/data/files: its small files, its weights, and diffusers' pipeline over them.

Two heads of 32 make the rows of the second matrix of an MLP 256 long, one block of a K-quant. One block of layers keeps
thirty layouts small. The VAE has the published depths, so that all its 194 names are the published ones.
"""
import json, os, shutil, sys, tempfile

import diffusers
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLProcessor

import tinyqwen as tq

KIND = "qwen-image-edit-2511"
SIZES = dict(head_dim=32, heads=2, layers=1, text_hidden=32, text_heads=2, text_kv=1, mrope=[2, 3, 3], text_layers=2,
             text_inter=96, vis_hidden=16, vis_heads=2, vis_depth=3, vis_full=[2], vis_inter=64, window=112, vae_base=2,
             vae_mult=[1, 2, 4, 4], vae_res=2, max_pixels=12845056)
WEIGHTS = {"transformer": "diffusion_pytorch_model", "text_encoder": "model", "vae": "diffusion_pytorch_model"}


def build(out):
    """Writes `base/` (everything but weights) and `plain/` (weights of text encoder and VAE); the transformer's weights."""
    sizes = {**tq.pick_config(KIND, 0), **SIZES}
    tq.pick_config = lambda kind, seed: dict(sizes)
    tq.HEADS[32] = [8, 12, 12]
    with tempfile.TemporaryDirectory() as folder:
        tq.build_checkpoint(KIND, 0, f"{folder}/base")
        os.makedirs(f"{out}/plain", exist_ok=True)
        for part, stem in WEIGHTS.items():
            shutil.move(f"{folder}/base/{part}/{stem}.safetensors", f"{out}/plain/{part}.safetensors")
        shutil.rmtree(f"{out}/base", ignore_errors=True)
        shutil.copytree(f"{folder}/base", f"{out}/base")
    transformer = plain(out, "transformer")
    os.remove(f"{out}/plain/transformer.safetensors")
    return transformer


def plain(out, part):
    return load_file(f"{out}/plain/{part}.safetensors")


def pipeline(out):
    """QwenImageEditPlusPipeline in f32, its weights still to be set."""
    base = f"{out}/base"
    config = lambda part: json.load(open(f"{base}/{part}/config.json"))
    text = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(f"{base}/text_encoder"))
    made = diffusers.QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(f"{base}/scheduler"),
        vae=AutoencoderKLQwenImage.from_config(config("vae")).eval(), text_encoder=text.float().eval(),
        tokenizer=Qwen2Tokenizer.from_pretrained(f"{base}/tokenizer"),
        processor=Qwen2VLProcessor.from_pretrained(f"{base}/processor"),
        transformer=QwenImageTransformer2DModel.from_config(config("transformer")).eval())
    made.set_progress_bar_config(disable=True)
    return made


def stored_text_name(name):
    for flat, nested in (("model.", "model.language_model."), ("visual.", "model.visual.")):
        if name.startswith(flat):
            return nested + name[len(flat):]
    return name


def set_weights(pipe, transformer, text_encoder, vae):
    """Weights by their published names; only the unused `lm_head.weight` may be absent."""
    pipe.transformer.load_state_dict({k: v.float() for k, v in transformer.items()})
    text = {stored_text_name(k): v.float() for k, v in text_encoder.items()}
    missing, unexpected = pipe.text_encoder.load_state_dict(text, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    pipe.vae.load_state_dict({k: v.float() for k, v in vae.items()})


def use_areas(image_area, condition_area):
    """What the settings model.image_area and model.condition_area do: other areas than the published ones."""
    module = sys.modules[diffusers.QwenImageEditPlusPipeline.__module__]
    original = module.calculate_dimensions
    areas = {1024 * 1024: image_area, 384 * 384: condition_area}
    module.calculate_dimensions = lambda area, ratio: original(areas.get(area, area), ratio)


def save(tensors, path, metadata=None):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, metadata=metadata)
    os.chmod(path, 0o644)
