#!/usr/bin/env python3
"""Times one part of diffusers' pipeline with random weights, in a process of its own.

    python tools/bench/reference.py '{"part": "vae-decoder", "size": [256, 256], "threads": 2, ...}'

diffusers_bench.py calls it, and says what else it needs. Prints a line of JSON for each stage once it is measured,
so that what fails later takes nothing away: name, seconds, cpu_s (of all threads) and peak_bytes (beside the
weights and the program), each the least of the repeats, but for the memory, which is the most.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import diffusers
import machine
import torch
import transformers
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

WIDTH, TEXT_WIDTH, VOCABULARY, IMAGE_TOKEN = 3072, 3584, 152064, 151655
TEMPLATE_TOKENS = {"qwen-image": 34}  # before a prompt, dropped after the encoder
DRAWN = 1 << 18  # numbers that a CPU draws; larger matrices repeat them
# Of the largest number that a folded network makes, by how much it may differ.
FOLDED_WITHIN = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


def built(kind, config, device: torch.device, dtype: torch.dtype):
    """A model with random weights, filled on the device."""
    with torch.device("meta"):
        model = kind._from_config(config) if hasattr(kind, "_from_config") else kind(**config)
    model = model.to(dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith("gamma"):
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
        elif device.type == "cpu" and parameter.numel() % DRAWN == 0:
            drawn = torch.empty(DRAWN).normal_(0, 0.02, generator=generator)
            parameter.data.view(-1, DRAWN).copy_(drawn)
        else:
            parameter.data.normal_(0, 0.02, generator=generator)
    return model


def transformer(given: dict, device: torch.device, dtype: torch.dtype):
    config = dict(
        patch_size=2, in_channels=64, out_channels=16, num_layers=given["layers"] or 60, attention_head_dim=128,
        num_attention_heads=24, joint_attention_dim=TEXT_WIDTH, axes_dims_rope=(16, 56, 56),
        zero_cond_t=given["model"].endswith("2511"),
    )  # fmt: skip
    model = built(QwenImageTransformer2DModel, config, device, dtype)
    # Tables of rotations are plain attributes, which the meta device has left empty.
    kind = type(model.pos_embed)
    model.pos_embed = kind(theta=10000, axes_dim=[16, 56, 56], scale_rope=True)
    return model


def text_encoder(given: dict, device: torch.device, dtype: torch.dtype):
    """The model without its last layer, the words' probabilities, which no picture needs."""
    config = Qwen2_5_VLConfig(
        text_config=dict(
            hidden_size=TEXT_WIDTH, intermediate_size=18944, num_hidden_layers=given["text_layers"] or 28,
            num_attention_heads=28, num_key_value_heads=4, vocab_size=VOCABULARY, rms_norm_eps=1e-6,
            max_position_embeddings=128000,
            rope_parameters={"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        ),
        vision_config=dict(
            hidden_size=1280, intermediate_size=3420, depth=given["vision_layers"] or 32, num_heads=16,
            out_hidden_size=TEXT_WIDTH, fullatt_block_indexes=[7, 15, 23, 31],
        ),
    )  # fmt: skip
    model = built(Qwen2_5_VLModel, config, device, dtype)
    # Rotary frequencies are buffers, which the meta device has left empty.
    for module in model.modules():
        if getattr(module, "inv_freq", None) is not None:
            size = 2 * module.inv_freq.numel()
            theta = 1e6 if size == 128 else 1e4
            frequencies = 1 / theta ** (torch.arange(0, size, 2, device=device).float() / size)
            module.register_buffer("inv_freq", frequencies, persistent=False)
    return model


class FoldedConvolution(torch.nn.Module):
    """A causal convolution over time, for a single frame: only the kernel's last slice meets it."""

    def __init__(self, causal: QwenImageCausalConv3d) -> None:
        super().__init__()
        left, right, top, bottom, *_ = causal._padding
        assert left == right and top == bottom
        self.stride, self.padding = causal.stride[1:], (top, left)
        self.weight = torch.nn.Parameter(causal.weight.data[:, :, -1].clone(), requires_grad=False)
        self.bias = causal.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = torch.nn.functional.conv2d(x.squeeze(2), self.weight, self.bias, self.stride, self.padding)
        return made.unsqueeze(2)


class FoldedAutoencoder:
    """A VAE of two dimensions, as ours is; nothing is kept for frames that never come."""

    def __init__(self, vae: AutoencoderKLQwenImage) -> None:
        for parent in list(vae.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, QwenImageCausalConv3d):
                    setattr(parent, name, FoldedConvolution(child))
        self.vae = vae

    def encode(self, picture: torch.Tensor) -> torch.Tensor:
        return self.vae.quant_conv(self.vae.encoder(picture)).chunk(2, dim=1)[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decoder(self.vae.post_quant_conv(latents)).clamp(-1, 1)


def expect_same(name: str, whole: torch.Tensor, folded: torch.Tensor) -> None:
    """Stops if folding has changed what comes out."""
    largest, apart = whole.float().abs().max().item(), (whole.float() - folded.float()).abs().max().item()
    within = FOLDED_WITHIN[whole.dtype] * largest
    if not 0 < largest < float("inf") or not apart <= within:
        raise ValueError(f"{name}: folded and whole are {apart:.2e} apart, more than {within:.2e}")
    print(f"{name}: folded and whole are {apart / largest:.1e} of the largest number apart", file=sys.stderr)


class Clock:
    """Seconds, CPU seconds and memory of a stage, once the device is done with it."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def held(self) -> int | None:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else machine.memory("VmRSS")

    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else machine.memory("VmHWM")

    def measure(self, name: str, action) -> None:
        """Prints what `action` takes at best. The weights are there, and nothing else is."""
        gc.collect()
        can_tell = machine.forget_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        before = self.held()
        taken = [self.once(action) for _ in range(self.repeats)]
        peak = self.peak() if can_tell else None
        beside = None if None in (peak, before) else max(peak - before, 0)
        seconds, cpu_s = map(min, zip(*taken))
        print(json.dumps(dict(name=name, seconds=seconds, cpu_s=cpu_s, peak_bytes=beside)), flush=True)

    def once(self, action) -> tuple[float, float]:
        self.wait()
        started, cpu = time.perf_counter(), time.process_time()
        made = action()
        self.wait()
        taken = (time.perf_counter() - started, time.process_time() - cpu)
        del made
        return taken


class Reference:
    """What a pipeline of diffusers does, part by part."""

    def __init__(self, given: dict) -> None:
        self.given, (self.width, self.height) = given, given["size"]
        self.device, self.dtype = torch.device(given["device"]), getattr(torch, given["dtype"])
        self.clock = Clock(self.device, given["repeats"])

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def transformer(self) -> None:
        model, given = transformer(self.given, self.device, self.dtype), self.given
        grid = (1, self.height // 16, self.width // 16)
        made, tokens = grid[1] * grid[2], given["image_tokens"]
        # Reference pictures are alike; together they have the tokens that ours has.
        shapes = [[grid] * (tokens // made)]
        latents, references = self.random(1, made, 64), self.random(1, tokens - made, 64)
        text, level = self.random(1, given["text_tokens"], TEXT_WIDTH), torch.tensor([0.7], device=self.device)
        level = level.to(self.dtype)

        def one_pass() -> torch.Tensor:
            every = torch.cat([latents, references], 1)
            flow = model(
                hidden_states=every, encoder_hidden_states=text, timestep=level, img_shapes=shapes, return_dict=False
            )[0]
            return flow[:, :made]

        self.clock.repeats *= given["passes"]
        self.clock.measure("transformer pass", one_pass)

    def text_encoder(self) -> None:
        given = self.given
        grids, text_tokens = given["shown_patches"], given["text_tokens"]
        pictures, before = sum(rows * columns // 4 for rows, columns in grids), TEMPLATE_TOKENS.get(given["model"], 64)
        model = text_encoder(given, self.device, self.dtype)
        ids = torch.randint(0, 1000, (1, before + text_tokens), device=self.device)
        ids[:, before : before + pictures] = IMAGE_TOKEN
        mask, shown, patches = torch.ones_like(ids), {}, None
        if grids:
            patches = self.random(sum(rows * columns for rows, columns in grids), 1176)
            shown["image_grid_thw"] = torch.tensor([[1, rows, columns] for rows, columns in grids], device=self.device)
            shown["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()

        def encode_prompts() -> list[torch.Tensor]:
            """Pictures once for all prompts, as ours does, and the hidden states of each prompt."""
            seen = {}
            if grids:
                seen["image"] = model.get_image_features(patches, shown["image_grid_thw"], return_dict=True)
            prompts = range(given["prompts"])
            every = [model(input_ids=ids, attention_mask=mask, mm_encoder_outputs=dict(seen), use_cache=False, **shown)
                     for _ in prompts]
            return [states.last_hidden_state for states in every]

        self.clock.measure("text encoder", encode_prompts)

    def vae_encoder(self) -> None:
        picture, count = self.random(1, 3, 1, self.height, self.width), self.given["references"]
        if not count:
            return
        small = self.random(1, 3, 1, 64, 64)
        self.whole_and_folded("vae encoder", small, lambda vae, x: vae.encode(x).latent_dist.mode(),
                              FoldedAutoencoder.encode, lambda encode: [encode(picture) for _ in range(count)])

    def vae_decoder(self) -> None:
        latents, small = self.random(1, 16, 1, self.height // 8, self.width // 8), self.random(1, 16, 1, 8, 8)
        self.whole_and_folded("vae decoder", small, lambda vae, x: vae.decode(x).sample, FoldedAutoencoder.decode,
                              lambda decode: decode(latents))

    def whole_and_folded(self, name: str, small: torch.Tensor, whole, folded, work) -> None:
        """Measures both forms of a half of the VAE, which make the same of something `small`."""
        vae = built(AutoencoderKLQwenImage, {}, self.device, self.dtype)
        expected = whole(vae, small)
        failure = None
        if self.given["vae"] != "folded":
            try:
                self.clock.measure(name, lambda: work(lambda x: whole(vae, x)))
            except Exception as error:  # the folded one needs a third of the memory
                failure = error
        if self.given["vae"] != "whole":
            narrow = FoldedAutoencoder(vae)
            expect_same(name, expected, folded(narrow, small))
            self.clock.measure(f"{name}, folded", lambda: work(lambda x: folded(narrow, x)))
        if failure:
            raise failure


def main() -> None:
    given = json.loads(sys.argv[1])
    if given["device"] == "auto":
        given["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(given["threads"])
    modules = (torch, diffusers, transformers)
    print(json.dumps(dict(versions={module.__name__: module.__version__ for module in modules})), flush=True)
    with torch.inference_mode():
        getattr(Reference(given), given["part"].replace("-", "_"))()


if __name__ == "__main__":
    main()
