#!/usr/bin/env python3
"""Writes tests/data/files: tiny checkpoints in the layouts that users have, and the picture diffusers makes from each.

    python make_files.py [--mistakes]

All is deterministic. Every picture is made by QwenImageEditPlusPipeline in f32 on a CPU, from the files as they were
written, read back by `files_read.py` (gguf's `dequantize`, torch's own float8 types, plain torch arithmetic); nothing of
this project takes part. `--mistakes` prints how far known mistakes of loaders move the pictures: each moves them by more
than 5 levels in the mean but for one. Swapping the two slices of the patch embedding moves none: a still picture is given
to both alike, so that only their sum counts; compare the tensor with that of plain/text_encoder.safetensors. Changing all
weights by a millionth moves no value by more than 1 level.

    base/                       the small files of a tiny 2511: configurations, tokenizer, processor, scheduler
    plain/{text_encoder,vae}.safetensors   their weights, bf16, published names: the parts that a layout lacks
                                (the transformer's are those of comfy/diffusion_models/a.safetensors)
    ggml_blocks.safetensors     `<TYPE>.bytes` and `<TYPE>.values`: random valid blocks (files_blocks.py)
    gguf/<TYPE>.gguf            the transformer as city96's converter writes it; nothing in it tells 2511
    gguf/mixed-2511.gguf        many types in one file, prefix `model.diffusion_model.`, no architecture, marker tensor
    gguf/unsupported.gguf       a tensor in IQ2_XXS: to be refused
    llama/{text_encoder,mmproj}.gguf   the text encoder as llama.cpp writes it (Q8_0, F16, F32; F16 and F32)
    llama/text_only.gguf        a `qwen2` without sight: to be refused
    comfy/                      ComfyUI's models folder: bf16 transformer with an empty marker, fp8_scaled text encoder,
                                Wan-named VAE, a stray LoRA
    fp8/plain_e4m3, plain_e5m2  casts without scales (all tensors; matrices of blocks)
    fp8/scaled_old              `scaled_fp8`, `scale_weight`, `scale_input`; prefix `model.diffusion_model.`
    fp8/mixed_metadata          `weight_scale` by tensor and by row, `_quantization_metadata` in the header (layers named
                                without the tensors' prefix `diffusion_model.`), two matrices bf16
    fp8/comfy_quant             the same said by `.comfy_quant` tensors; one layer e5m2
    fp8/modelopt                `weight_scale` and `input_scale` of every matrix, no marker
    fp8/block_scale_inv         `weight_scale_inv` by blocks of 128x128, of every matrix
    fp8/unknown                 `comfy_quant` naming nvfp4: to be refused
    int8/rows, int8/convrot     int8_tensorwise; with rotations in groups of 16, 64 and 256 and one layer without
    all_in_one.safetensors      prefixes model.diffusion_model., text_encoders.qwen25_7b.transformer., vae. (Wan names);
                                the transformer's blocks cast to e4m3, marker
    golden.safetensors          U8 [height, width, 3] by layout; `plain` is the unquantised checkpoint's
    golden.json, input.png      the request, the same for all, and which files make each layout

K-quants and IQ4_* are not quantised weights but random blocks of the weights' spread (gguf's Python only decodes them).
Where a row of 64 is no multiple of 256, the type is the one llama-quantize falls back to. With one layer of blocks the
text stream's `to_add_out` and `txt_mlp` do not reach the picture.
The true layouts are described by their makers: ComfyUI's QUANTIZATION.md, city96/ComfyUI-GGUF, llama.cpp's conversion
and docs/int8_convrot.md of stable-diffusion.cpp; the names and values here follow them, the weights are random.

Made with torch 2.11.0, diffusers 0.42.1, transformers 5.23.0, gguf 0.19.0, safetensors 0.8.0, numpy 2.4.6.
"""
import argparse, json, os, pathlib, shutil, warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")
import numpy as np
import torch
from PIL import Image

import files_comfy, files_gguf, files_model, files_read, files_scaled, tinyqwen, verify
from files_blocks import TYPES, block_cases
from files_read import Mistake

OUT = str(pathlib.Path(__file__).parent / "files")
REQUEST = dict(prompt="Make the sky darker and add a yellow lamp near the door.", negative_prompt="blurry, bad text",
               width=64, height=48, num_inference_steps=2, true_cfg_scale=2.0)
SEED = 4242
IMAGE_AREA, CONDITION_AREA = 96 * 96, 128 * 128
PLAIN = "comfy/diffusion_models/a.safetensors"
FP8 = ["plain_e4m3", "plain_e5m2", "scaled_old", "mixed_metadata", "comfy_quant", "modelopt", "block_scale_inv"]


def write_files():
    shutil.rmtree(OUT, ignore_errors=True)
    transformer = files_model.build(OUT)
    blocks = {k: torch.from_numpy(v) for k, v in block_cases().items()}
    files_model.save(blocks, f"{OUT}/ggml_blocks.safetensors")
    text, vae = files_model.plain(OUT, "text_encoder"), files_model.plain(OUT, "vae")
    for index, name in enumerate(TYPES):
        files_gguf.transformer(f"{OUT}/gguf/{name}.gguf", transformer, name, 100 + index)
    files_gguf.mixed(f"{OUT}/gguf/mixed-2511.gguf", transformer, 200)
    files_gguf.unsupported(f"{OUT}/gguf/unsupported.gguf")
    files_gguf.text_encoder(f"{OUT}/llama/text_encoder.gguf", text, f"{OUT}/base")
    files_gguf.mmproj(f"{OUT}/llama/mmproj.gguf", text, f"{OUT}/base")
    files_gguf.text_only(f"{OUT}/llama/text_only.gguf", text, f"{OUT}/base")
    files_scaled.write_scaled(OUT, transformer)
    files_comfy.write_comfy(OUT, transformer, text, vae)
    files_comfy.write_all_in_one(OUT, transformer, text, vae)
    tinyqwen.synth_image(70, 50, 17).save(f"{OUT}/input.png")


def layouts():
    """What each layout takes besides the small files of `base/`."""
    plain = {"text_encoder": "plain/text_encoder.safetensors", "vae": "plain/vae.safetensors"}
    made = {"plain": {"transformer": PLAIN, **plain}}
    transformers = {f"gguf/{name}": f"gguf/{name}.gguf" for name in [*TYPES, "mixed-2511"]}
    transformers |= {f"fp8/{name}": f"fp8/{name}.safetensors" for name in FP8}
    transformers |= {f"int8/{name}": f"int8/{name}.safetensors" for name in ("rows", "convrot")}
    made |= {name: {"transformer": path, **plain} for name, path in transformers.items()}
    made["llama"] = {**made["plain"], "text_encoder": "llama/text_encoder.gguf", "mmproj": "llama/mmproj.gguf"}
    made["comfy"] = {"folder": "comfy"}
    made["all_in_one"] = {"file": "all_in_one.safetensors"}
    return made


def comfy_weights(mistake):
    published = files_model.plain(OUT, "vae")
    read = lambda path: files_read.stored(f"{OUT}/comfy/{path}.safetensors")[0]
    return (files_read.decoded(read("diffusion_models/a")), files_read.decoded(read("text_encoders/b"), mistake),
            files_read.from_wan(read("vae/c"), published))


def all_in_one_weights():
    tensors = files_read.stored(f"{OUT}/all_in_one.safetensors")[0]
    return (files_read.decoded(files_read.part(tensors, "model.diffusion_model.")),
            files_read.part(tensors, "text_encoders.qwen25_7b.transformer."),
            files_read.from_wan(files_read.part(tensors, "vae."), files_model.plain(OUT, "vae")))


def weights_of(name, files, mistake=None):
    if name == "comfy":
        return comfy_weights(mistake)
    if name == "all_in_one":
        return all_in_one_weights()
    text = files_model.plain(OUT, "text_encoder")
    if "mmproj" in files:
        text = {**files_read.text_encoder(f"{OUT}/{files['text_encoder']}", mistake),
                **files_read.mmproj(f"{OUT}/{files['mmproj']}", mistake)}
    return files_read.transformer(f"{OUT}/{files['transformer']}", mistake), text, files_model.plain(OUT, "vae")


def picture(pipe, weights):
    files_model.set_weights(pipe, *weights)
    image = Image.open(f"{OUT}/input.png").convert("RGB")
    made = pipe(image=[image], generator=torch.Generator("cpu").manual_seed(SEED), **REQUEST).images[0]
    return np.asarray(made)


def pipeline():
    files_model.use_areas(IMAGE_AREA, CONDITION_AREA)
    pipe = files_model.pipeline(OUT)
    verify.fix_mrope(pipe)
    return pipe


def write_goldens(pipe):
    goldens = {}
    for name, files in layouts().items():
        goldens[name] = torch.from_numpy(picture(pipe, weights_of(name, files)).copy())
        difference = (goldens[name].int() - goldens["plain"].int()).abs().float()
        print(f"{name:22} std {goldens[name].float().std():5.1f}  from plain: mean {difference.mean():6.2f} "
              f"max {int(difference.max())}", flush=True)
    files_model.save(goldens, f"{OUT}/golden.safetensors")
    said = {"request": REQUEST, "generator_seed": SEED, "input": "input.png", "image_area": IMAGE_AREA,
            "condition_area": CONDITION_AREA, "layouts": layouts()}
    with open(f"{OUT}/golden.json", "w") as file:
        json.dump(said, file, indent=1)


MISTAKES = {
    Mistake.SCALE_IGNORED: ["fp8/scaled_old", "fp8/mixed_metadata", "fp8/comfy_quant", "fp8/modelopt", "fp8/block_scale_inv",
                            "int8/rows", "int8/convrot", "comfy"],
    Mistake.WRONG_AXIS: ["fp8/mixed_metadata", "fp8/comfy_quant", "int8/rows"],
    Mistake.ROTATION_KEPT: ["int8/convrot"], Mistake.GROUP_DEFAULT: ["int8/convrot"],
    Mistake.VISION_QUERIES_SWAPPED: ["llama"], Mistake.VISION_VALUES_SWAPPED: ["llama"], Mistake.SLICES_SWAPPED: ["llama"],
    Mistake.SLICE_TWICE: ["llama"], Mistake.TEXT_VALUES_SWAPPED: ["llama"]}


def told(label, name, made, right):
    difference = np.abs(made.astype(int) - right.astype(int))
    print(f"{label:52} {name:20} mean {difference.mean():6.2f} max {difference.max()}", flush=True)


def measure_mistakes(pipe):
    files = layouts()
    right = {k: v.numpy() for k, v in files_read.stored(f"{OUT}/golden.safetensors")[0].items()}
    for mistake, names in MISTAKES.items():
        for name in names:
            told(mistake.value, name, picture(pipe, weights_of(name, files[name], mistake)), right[name])
    pipe.transformer.zero_cond_t = False
    for block in pipe.transformer.transformer_blocks:
        block.zero_cond_t = False
    told("zero_cond_t lost", "plain", picture(pipe, weights_of("plain", files["plain"])), right["plain"])


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--mistakes", action="store_true", help="only measure mistakes against the written pictures")
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    if arguments.parse_args().mistakes:
        return measure_mistakes(pipeline())
    write_files()
    write_goldens(pipeline())


if __name__ == "__main__":
    main()
