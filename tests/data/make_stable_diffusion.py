"""Makes tests/data/stable_diffusion: two tiny random checkpoints in the published
layout (StableDiffusionPipeline, StableDiffusionXLPipeline), and numbers that
diffusers computes with them.

    python tests/data/make_stable_diffusion.py [--seed S] [--out DIR]

Versions: torch 2.11, diffusers 0.42.1, transformers 5.23. Everything runs in
float32 on a CPU with one thread.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

MAX_LENGTH = 24
MERGES = ["t h", "i n", "a n", "r e", "o n", "e r</w>", "th e</w>", "in g</w>", "an d</w>", "c a",
          "ca t</w>", "re d</w>", "h o", "ho u", "hou s", "hous e</w>", "o f</w>", "a s", "s t"]
TEXTS = ["a red cat", "The house of THE  cat,\tand 12 dogs!", "", "it's déjà vu — 42€",
         "<|startoftext|>cat<|endoftext|>dog", "cat " * 40]

# As published: runwayml/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1,
# stabilityai/sd-turbo, stabilityai/stable-diffusion-xl-base-1.0, stabilityai/sdxl-turbo.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
         "num_train_timesteps": 1000, "trained_betas": None}
OLD = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
SCHEDULERS = {
    "pndm": (PNDMScheduler, {**BETAS, **OLD}),
    "ddim_v": (DDIMScheduler, {**BETAS, **OLD, "prediction_type": "v_prediction"}),
    "euler": (EulerDiscreteScheduler, {
        **BETAS, **OLD, "interpolation_type": "linear", "prediction_type": "epsilon",
        "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False}),
    "euler_turbo": (EulerDiscreteScheduler, {
        **BETAS, **OLD, "interpolation_type": "linear", "prediction_type": "epsilon",
        "timestep_spacing": "trailing", "use_karras_sigmas": False}),
    "ancestral_turbo": (EulerAncestralDiscreteScheduler, {
        **BETAS, **OLD, "interpolation_type": "linear", "prediction_type": "epsilon",
        "sample_max_value": 1.0, "timestep_spacing": "trailing", "use_karras_sigmas": False}),
}
# Further values, for the schedules alone.
VARIANTS = {
    **SCHEDULERS,
    "pndm_linear_v": (PNDMScheduler, {
        "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
        "num_train_timesteps": 1000, "skip_prk_steps": True, "set_alpha_to_one": True,
        "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    "pndm_linspace": (PNDMScheduler, {
        **BETAS, "skip_prk_steps": True, "timestep_spacing": "linspace"}),
    "ddim_clip": (DDIMScheduler, {
        "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
        "num_train_timesteps": 1000, "clip_sample": True, "clip_sample_range": 0.8,
        "set_alpha_to_one": True, "timestep_spacing": "linspace"}),
    "ddim_cosine": (DDIMScheduler, {
        "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000, "clip_sample": False,
        "prediction_type": "sample", "timestep_spacing": "trailing"}),
    "euler_v_linspace": (EulerDiscreteScheduler, {
        **BETAS, "prediction_type": "v_prediction", "timestep_spacing": "linspace",
        "final_sigmas_type": "sigma_min"}),
    "ancestral_v": (EulerAncestralDiscreteScheduler, {
        **BETAS, "prediction_type": "v_prediction", "timestep_spacing": "leading",
        "steps_offset": 1}),
}


def enliven(module, seed):
    """Weights that neither vanish nor explode, so that every layer counts."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                fan_in = parameter[0].numel() if "embedding" not in name or "time" in name else 1
                parameter.copy_(noise * fan_in**-0.5)
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.1 * noise)
    return module.eval()


def byte_letters():
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(256 + extra)
            extra += 1
    return [letters[byte] for byte in printable] + [
        letters[byte] for byte in range(256) if byte not in printable]


def make_tokenizer(folder, pad):
    """The four files of the published repositories; there is no tokenizer.json."""
    folder.mkdir(parents=True)
    letters = byte_letters()
    words = letters + [letter + "</w>" for letter in letters]
    words += [merge.replace(" ", "") for merge in MERGES]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    token = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False,
             "single_word": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({
        "bos_token": {**token, "content": "<|startoftext|>"}, "eos_token": token,
        "pad_token": pad, "unk_token": token}, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace",
        "model_max_length": MAX_LENGTH, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"},
        indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def text_config(tokenizer, **values):
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return CLIPTextConfig(**{
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": MAX_LENGTH,
        "hidden_act": "quick_gelu", "bos_token_id": end - 1, "eos_token_id": end,
        "pad_token_id": 1, "projection_dim": 32, **values})


def make_vae(seed, **values):
    vae = AutoencoderKL(**{
        "block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "latent_channels": 4,
        "norm_num_groups": 2, "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "sample_size": 64, **values})
    return enliven(vae, seed)


def make_sd(folder, seed):
    tokenizer = make_tokenizer(folder / "tokenizer", "<|endoftext|>")
    text_encoder = enliven(CLIPTextModel(text_config(tokenizer)), seed + 1)
    unet = enliven(UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32,
        attention_head_dim=2), seed + 2)
    make, config = SCHEDULERS["pndm"]
    pipeline = StableDiffusionPipeline(
        vae=make_vae(seed + 3), text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
        scheduler=make.from_config(config), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    return pipeline


def make_sdxl(folder, seed):
    tokenizer = make_tokenizer(folder / "tokenizer", "<|endoftext|>")
    tokenizer_2 = make_tokenizer(folder / "tokenizer_2", "!")
    text_encoder = enliven(CLIPTextModel(text_config(tokenizer)), seed + 1)
    # eos_token_id 2 is what the published file says; it means "the largest id".
    text_encoder_2 = enliven(CLIPTextModelWithProjection(text_config(
        tokenizer, hidden_size=24, num_hidden_layers=3, num_attention_heads=3,
        hidden_act="gelu", eos_token_id=2, projection_dim=20)), seed + 4)
    unet = enliven(UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32 + 24,
        attention_head_dim=[2, 4], transformer_layers_per_block=[1, 2],
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=20 + 6 * 4), seed + 2)
    make, config = SCHEDULERS["euler"]
    pipeline = StableDiffusionXLPipeline(
        vae=make_vae(seed + 3, scaling_factor=0.13025, force_upcast=True),
        text_encoder=text_encoder, text_encoder_2=text_encoder_2, tokenizer=tokenizer,
        tokenizer_2=tokenizer_2, unet=unet, scheduler=make.from_config(config),
        force_zeros_for_empty_prompt=True, add_watermarker=False)
    return pipeline


def save(pipeline, folder):
    """Saves the pipeline, but leaves the tokenizers' files as they are."""
    names = [name for name in ("tokenizer", "tokenizer_2") if (folder / name).is_dir()]
    kept = {file: file.read_bytes() for name in names for file in (folder / name).iterdir()}
    pipeline.save_pretrained(folder)
    make, config = SCHEDULERS["euler" if "tokenizer_2" in names else "pndm"]
    (folder / "scheduler/scheduler_config.json").write_text(
        json.dumps({"_class_name": make.__name__, **config}, indent=2))
    for name in names:
        shutil.rmtree(folder / name)
        (folder / name).mkdir()
    for file, content in kept.items():
        file.write_bytes(content)
    if len(names) == 1:
        # transformers 5 drops a prefix and a buffer that the published files have.
        file = folder / "text_encoder/model.safetensors"
        tensors = {f"text_model.{name}": tensor for name, tensor in load_file(file).items()}
        tensors["text_model.embeddings.position_ids"] = torch.arange(MAX_LENGTH)[None]
        save_file(tensors, file, metadata={"format": "pt"})


def picture(width, height, seed):
    """Soft coloured waves with a little noise, bytes (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 7 + k) * np.cos(y / (5 + k)) for k in range(3)]
    values = 127 + 90 * np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


CASES = {
    "sd": [
        dict(name="text", steps=5, guidance=7.5, negative="the house", width=64, height=40),
        dict(name="text_without_guidance", steps=3, guidance=1.0),
        dict(name="text_ddim_v", steps=4, guidance=5.0, scheduler="ddim_v"),
        dict(name="text_turbo", steps=2, guidance=0.0, scheduler="euler_turbo"),
        dict(name="image", steps=6, guidance=4.0, strength=0.75, image=(70, 45)),
        dict(name="image_ddim_v", steps=5, guidance=3.0, strength=0.5, image=(64, 64),
             scheduler="ddim_v"),
        dict(name="image_ancestral", steps=4, guidance=2.0, strength=0.5, image=(64, 64),
             scheduler="ancestral_turbo"),
    ],
    "sdxl": [
        dict(name="text", steps=4, guidance=5.0, width=64, height=40),
        dict(name="text_negative", steps=3, guidance=5.0, negative="the house"),
        dict(name="text_turbo", steps=2, guidance=0.0, scheduler="ancestral_turbo"),
        dict(name="image", steps=5, guidance=4.0, strength=0.6, image=(70, 45)),
        # Not the same as none: the empty text is encoded.
        dict(name="text_empty_negative", steps=3, guidance=5.0, negative=""),
        dict(name="image_empty_negative", steps=4, guidance=4.0, strength=0.6, image=(64, 64),
             negative=""),
    ],
}


def run_case(base, case, tensors):
    prompt, seed = "a red cat and the house", 7
    make, config = SCHEDULERS[case["scheduler"]] if "scheduler" in case else (None, None)
    components = dict(base.components)
    if make:
        components["scheduler"] = make.from_config(config)
    xl = isinstance(base, StableDiffusionXLPipeline)
    call = dict(prompt=prompt, num_inference_steps=case["steps"], guidance_scale=case["guidance"],
                negative_prompt=case.get("negative"),
                generator=torch.Generator("cpu").manual_seed(seed))
    kept = {}

    def keep(_pipeline, _step, _timestep, values):
        kept["latents"] = values["latents"].clone()
        return values

    extra = dict(add_watermarker=False) if xl else dict(requires_safety_checker=False)
    if "image" in case:
        source = picture(*case["image"], seed=3)
        tensors[f"{case['name']}.source"] = torch.from_numpy(source)
        make_pipeline = StableDiffusionXLImg2ImgPipeline if xl else StableDiffusionImg2ImgPipeline
        call |= dict(image=Image.fromarray(source), strength=case["strength"])
    else:
        make_pipeline = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
        call |= dict(width=case.get("width", 64), height=case.get("height", 64))
    pipeline = make_pipeline(**components, **extra)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(**call, callback_on_step_end=keep).images[0]
    tensors[f"{case['name']}.latents"] = kept["latents"]
    tensors[f"{case['name']}.picture"] = torch.from_numpy(np.array(image))
    values = np.array(image)
    print(case["name"], values.shape, "mean", values.mean().round(1), "std", values.std().round(1),
          "latents", kept["latents"].std().item())
    record = {**case, "prompt": prompt, "seed": seed}
    if make:
        record["scheduler"] = {"_class_name": make.__name__, **config}
    return record


@torch.no_grad()
def record(base, folder, cases):
    tensors, generator = {}, torch.Generator().manual_seed(11)
    xl = isinstance(base, StableDiffusionXLPipeline)
    tokens = {}
    for name in ("tokenizer", "tokenizer_2")[: 2 if xl else 1]:
        tokenizer = getattr(base, name)
        tokens[name] = [[text, tokenizer(text, padding="max_length", max_length=MAX_LENGTH,
                                         truncation=True).input_ids] for text in TEXTS]
    embeds, _, *pooled = base.encode_prompt(
        "a red cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    tensors["text"] = embeds
    sample = torch.randn((1, 4, 8, 5), generator=generator)
    extra = {}
    if xl:
        tensors["pooled"] = pooled[0]
        extra = {"added_cond_kwargs": {
            "text_embeds": pooled[0], "time_ids": torch.tensor([[40., 64., 0., 0., 40., 64.]])}}
    tensors["unet.sample"] = sample
    tensors["unet.prediction"] = base.unet(sample, 741.0, embeds, **extra).sample
    image = torch.rand((1, 3, 40, 64), generator=generator) * 2 - 1
    posterior = base.vae.encode(image).latent_dist
    tensors["vae.image"] = image
    tensors["vae.mean"], tensors["vae.std"] = posterior.mean, posterior.std
    tensors["vae.latents"] = torch.randn((1, 4, 5, 8), generator=generator)
    tensors["vae.decoded"] = base.vae.decode(tensors["vae.latents"]).sample
    calls = [run_case(base, case, tensors) for case in cases]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()},
              folder / "golden.safetensors")
    (folder / "golden.json").write_text(
        json.dumps({"tokens": tokens, "cases": calls}, indent=1, ensure_ascii=False))


def record_schedules(out):
    """Timesteps of many lengths, and short walks with given predictions."""
    tables, walks = [], {}
    for name, (make, config) in VARIANTS.items():
        for steps in (1, 2, 3, 7, 20, 50, 150):
            scheduler = make.from_config(config)
            scheduler.set_timesteps(steps)
            tables.append({
                "name": name, "config": {"_class_name": make.__name__, **config}, "steps": steps,
                "timesteps": [float(value) for value in scheduler.timesteps],
                "initial_scale": float(scheduler.init_noise_sigma)})
        scheduler = make.from_config(config)
        scheduler.set_timesteps(6)
        generator = torch.Generator().manual_seed(5)
        sample = torch.randn(16, generator=generator)
        walks[f"{name}.start"] = sample
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(2)
        noisy = scheduler.add_noise(sample[None], torch.flip(sample[None], [1]),
                                    scheduler.timesteps[2:3])
        walks[f"{name}.noisy"] = noisy
        scheduler = make.from_config(config)
        scheduler.set_timesteps(6)
        predictions, inputs, states = [], [], []
        for timestep in scheduler.timesteps:
            prediction = torch.randn(16, generator=generator)
            inputs.append(scheduler.scale_model_input(sample, timestep))
            takes_generator = "generator" in scheduler.step.__code__.co_varnames
            extra = {"generator": generator} if takes_generator else {}
            sample = scheduler.step(prediction, timestep, sample, **extra).prev_sample
            predictions.append(prediction)
            states.append(sample)
        walks[f"{name}.predictions"] = torch.stack(predictions)
        walks[f"{name}.inputs"] = torch.stack(inputs)
        walks[f"{name}.states"] = torch.stack(states)
    save_file({name: tensor.contiguous().float() for name, tensor in walks.items()},
              out / "schedules.safetensors")
    (out / "schedules.json").write_text(json.dumps(tables))


# The published config.json files, without what each library writes on its own.
UNET = {"act_fn": "silu", "center_input_sample": False, "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4}
FOUR_LEVELS = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3}
VAE = {"act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "in_channels": 3,
       "down_block_types": ["DownEncoderBlock2D"] * 4, "latent_channels": 4, "layers_per_block": 2,
       "norm_num_groups": 32, "out_channels": 3, "up_block_types": ["UpDecoderBlock2D"] * 4}
TEXT = {"attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
        "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "vocab_size": 49408}
PUBLISHED = {
    "sd15": {
        "text_encoder": TEXT, "vae": {**VAE, "sample_size": 512},
        "unet": {**UNET, **FOUR_LEVELS, "attention_head_dim": 8, "cross_attention_dim": 768,
                 "sample_size": 64}},
    "sd21": {
        "text_encoder": {**TEXT, "hidden_act": "gelu", "hidden_size": 1024, "projection_dim": 512,
                         "intermediate_size": 4096, "num_attention_heads": 16,
                         "num_hidden_layers": 23},
        "unet": {**UNET, **FOUR_LEVELS, "attention_head_dim": [5, 10, 20, 20],
                 "cross_attention_dim": 1024, "dual_cross_attention": False,
                 "num_class_embeds": None, "only_cross_attention": False, "sample_size": 96,
                 "upcast_attention": True, "use_linear_projection": True}},
    "sdxl": {
        "text_encoder_2": {**TEXT, "hidden_act": "gelu", "hidden_size": 1280,
                           "intermediate_size": 5120, "num_attention_heads": 20,
                           "num_hidden_layers": 32, "projection_dim": 1280},
        "vae": {**VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025},
        "unet": {**UNET, "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64,
                 "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
                 "block_out_channels": [320, 640, 1280], "class_embed_type": None,
                 "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
                 "cross_attention_dim": 2048, "cross_attention_norm": None,
                 "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
                 "dual_cross_attention": False, "mid_block_only_cross_attention": None,
                 "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None,
                 "only_cross_attention": False, "projection_class_embeddings_input_dim": 2816,
                 "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False,
                 "resnet_time_scale_shift": "default", "sample_size": 128,
                 "time_embedding_type": "positional", "transformer_layers_per_block": [1, 2, 10],
                 "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
                 "upcast_attention": None, "use_linear_projection": True}},
}


def record_names(out):
    """Which tensors the full-size configurations have: how many, and a digest of
    the sorted lines "name [sides]"."""
    makers = {"unet": UNet2DConditionModel.from_config, "vae": AutoencoderKL.from_config,
              "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
              "text_encoder_2":
                  lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config))}
    records = []
    for model, components in PUBLISHED.items():
        for component, config in components.items():
            with torch.device("meta"):
                tensors = dict(makers[component](config).named_parameters())
            lines = sorted(f"{name.removeprefix('text_model.')} {list(tensor.shape)}\n"
                           for name, tensor in tensors.items())
            digest = hashlib.sha256("".join(lines).encode()).hexdigest()
            records.append({"model": model, "component": component, "config": config,
                            "tensors": len(lines), "digest": digest})
            print(model, component, len(lines))
    (out / "published.json").write_text(json.dumps(records, indent=1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "stable_diffusion")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.out.exists():
        shutil.rmtree(arguments.out)
    arguments.out.mkdir(parents=True)
    record_schedules(arguments.out)
    record_names(arguments.out)
    for name, make, load in [("sd", make_sd, StableDiffusionPipeline),
                             ("sdxl", make_sdxl, StableDiffusionXLPipeline)]:
        folder = arguments.out / name
        save(make(folder, arguments.seed * 1000 + 100), folder)
        extra = {"add_watermarker": False} if name == "sdxl" else {}
        record(load.from_pretrained(folder, **extra), folder, CASES[name])


if __name__ == "__main__":
    main()
