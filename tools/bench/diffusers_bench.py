#!/usr/bin/env python3
"""Times `diffuser-api bench` and diffusers on the same shapes in one run, and prints the ratio.

    python tools/bench/diffusers_bench.py --binary target/release/diffuser-api --layers 2 \\
        --text-layers 2 --vision-layers 2 --size 256x256 --steps 2 --threads 2

Needs requirements.txt, no checkpoint: both sides have random weights, made on the
device. Ours is measured before and after diffusers, and the better of each is
taken, so that neither has the quieter machine. CPU seconds (of all threads) are
the steadier number where other programs run; on a GPU they say nothing. What fails on
one side leaves the other's times, and --json FILE has at any moment what is known.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pathlib
import subprocess
import tempfile
import time
import traceback

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import diffusers
import torch
import transformers
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEMPLATE_TOKENS = 64  # before a prompt, dropped after the encoder
WIDTH, TEXT_WIDTH, VOCABULARY, IMAGE_TOKEN = 3072, 3584, 152064, 151655
SCHEDULER = dict(
    base_image_seq_len=256, base_shift=0.5, max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02,
    use_dynamic_shifting=True, time_shift_type="exponential",
)  # fmt: skip


def ours(options: argparse.Namespace) -> dict:
    """The report of one run of our program."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "report.json"
        command = [str(options.binary), "bench", "--json", str(file)]
        for name in ("model", "size", "steps", "guidance", "repeats", "device", "dtype", "references"):
            command += [f"--{name}", str(getattr(options, name))]
        for name in ("layers", "text_layers", "vision_layers"):
            if (count := getattr(options, name)) is not None:
                command += [f"--{name.replace('_', '-')}", str(count)]
        environment = os.environ | {"RAYON_NUM_THREADS": str(options.threads)}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        return json.loads(file.read_text())


def built(kind, config, device: torch.device, dtype: torch.dtype):
    """A model with random weights, filled on the device."""
    with torch.device("meta"):
        model = kind._from_config(config) if hasattr(kind, "_from_config") else kind(**config)
    model = model.to(dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and not name.endswith("gamma"):
            parameter.data.normal_(0, 0.02, generator=generator)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    return model


def transformer(options, device, dtype):
    config = dict(
        patch_size=2, in_channels=64, out_channels=16, num_layers=options.layers or 60, attention_head_dim=128,
        num_attention_heads=24, joint_attention_dim=TEXT_WIDTH, axes_dims_rope=(16, 56, 56),
        zero_cond_t=options.model.endswith("2511"),
    )  # fmt: skip
    model = built(QwenImageTransformer2DModel, config, device, dtype)
    # Tables of rotations are plain attributes, which the meta device has left empty.
    kind = type(model.pos_embed)
    model.pos_embed = kind(theta=10000, axes_dim=[16, 56, 56], scale_rope=True)
    return model


def text_encoder(options, device, dtype):
    config = Qwen2_5_VLConfig(
        text_config=dict(
            hidden_size=TEXT_WIDTH, intermediate_size=18944, num_hidden_layers=options.text_layers or 28,
            num_attention_heads=28, num_key_value_heads=4, vocab_size=VOCABULARY, rms_norm_eps=1e-6,
            max_position_embeddings=128000,
            rope_parameters={"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        ),
        vision_config=dict(
            hidden_size=1280, intermediate_size=3420, depth=options.vision_layers or 32, num_heads=16,
            out_hidden_size=TEXT_WIDTH, fullatt_block_indexes=[7, 15, 23, 31],
        ),
    )  # fmt: skip
    model = built(Qwen2_5_VLForConditionalGeneration, config, device, dtype)
    # Rotary frequencies are buffers, which the meta device has left empty.
    for module in model.modules():
        if getattr(module, "inv_freq", None) is not None:
            size = 2 * module.inv_freq.numel()
            theta = 1e6 if size == 128 else 1e4
            frequencies = 1 / theta ** (torch.arange(0, size, 2, device=device).float() / size)
            module.register_buffer("inv_freq", frequencies, persistent=False)
    return model


class Clock:
    """Seconds and CPU seconds of named stages, once the device is done with them."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stages = device, {}

    def time(self, name: str, action):
        self.wait()
        started, cpu = time.perf_counter(), time.process_time()
        result = action()
        self.wait()
        taken = (time.perf_counter() - started, time.process_time() - cpu)
        before = self.stages.get(name, (float("inf"),) * 2)
        self.stages[name] = tuple(map(min, before, taken))
        return result

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Reference:
    """What a pipeline of diffusers does, component by component, with our run's sizes."""

    def __init__(self, options: argparse.Namespace, report: dict) -> None:
        self.options, self.report = options, report
        self.device, self.dtype = torch.device(report["device"]), DTYPES[report["dtype"]]
        self.width, self.height = map(int, options.size.split("x"))
        self.clock, self.prompts = Clock(self.device), 2 if options.guidance > 1 else 1

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    @torch.inference_mode()
    def steps(self) -> None:
        options, width, height = self.options, self.width, self.height
        model = transformer(options, self.device, self.dtype)
        grid = (1, height // 16, width // 16)
        made, tokens = grid[1] * grid[2], self.report["image_tokens"]
        # Reference pictures are alike; together they have the tokens that ours has.
        shapes = [[grid] * (tokens // made)]
        latents, references = self.random(1, made, 64), self.random(1, tokens - made, 64)
        text = self.random(1, self.report["text_tokens"], TEXT_WIDTH)

        def step(scheduler, timestep) -> None:
            nonlocal latents
            every = torch.cat([latents, references], 1)
            level = timestep.expand(1).to(self.dtype) / 1000
            flows = []
            for _ in range(self.prompts):
                flow = model(
                    hidden_states=every, encoder_hidden_states=text, timestep=level, img_shapes=shapes, return_dict=False
                )[0]
                flows.append(flow[:, :made])
            flow = flows[0]
            if self.prompts == 2:
                combined = flows[1] + options.guidance * (flow - flows[1])
                flow = combined * (flow.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
            latents = scheduler.step(flow, timestep, latents, return_dict=False)[0]

        for _ in range(options.repeats):
            scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
            sigmas = torch.linspace(1, 1 / options.steps, options.steps).tolist()
            scheduler.set_timesteps(sigmas=sigmas, mu=0.69, device=self.device)
            for timestep in scheduler.timesteps:
                self.clock.time("a step", lambda: step(scheduler, timestep))

    @torch.inference_mode()
    def autoencoder(self) -> None:
        options, width, height = self.options, self.width, self.height
        vae = built(AutoencoderKLQwenImage, {}, self.device, self.dtype)
        for _ in range(options.repeats):
            if options.references:
                picture = self.random(1, 3, 1, height, width)
                encode = lambda: [vae.encode(picture).latent_dist.mode() for _ in range(options.references)]
                self.clock.time("vae encoder", encode)
            latents = self.random(1, 16, 1, height // 8, width // 8)
            self.clock.time("vae decoder", lambda: vae.decode(latents).sample)

    @torch.inference_mode()
    def encoder(self) -> None:
        grids = self.report["shown_patches"]
        pictures = sum(rows * columns // 4 for rows, columns in grids)
        words = self.report["text_tokens"] - pictures
        encoder = text_encoder(self.options, self.device, self.dtype)
        ids = torch.randint(0, 1000, (1, TEMPLATE_TOKENS + pictures + words), device=self.device)
        ids[:, TEMPLATE_TOKENS : TEMPLATE_TOKENS + pictures] = IMAGE_TOKEN
        shown = {}
        if grids:
            shown["pixel_values"] = self.random(sum(rows * columns for rows, columns in grids), 1176)
            shown["image_grid_thw"] = torch.tensor([[1, rows, columns] for rows, columns in grids], device=self.device)
            shown["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()

        def encode_prompts() -> None:
            for _ in range(self.prompts):
                encoder(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **shown)

        for _ in range(self.options.repeats):
            self.clock.time("text encoder", encode_prompts)


def best(reports: list[dict]) -> dict[str, tuple[float, float]]:
    """The least time of each of our stages; CPU seconds of a step are the mean of a run's."""
    stages: dict[str, tuple[float, float]] = {}
    for run in (run for report in reports for run in report["runs"]):
        for stage in run["stages"]:
            taken = (stage["seconds"], stage["cpu_s"])
            if stage["name"] == "steps":
                taken = (min(run["steps_s"]), stage["cpu_s"] / len(run["steps_s"]))
            name = "a step" if stage["name"] == "steps" else stage["name"]
            stages[name] = tuple(map(min, stages.get(name, taken), taken))
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path("target/release/diffuser-api"))
    parser.add_argument("--model", default="qwen-image-edit", choices=("qwen-image", "qwen-image-edit", "qwen-image-edit-2511"))
    parser.add_argument("--layers", type=int, help="blocks of the transformer; all without it")
    parser.add_argument("--text-layers", type=int)
    parser.add_argument("--vision-layers", type=int)
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--references", type=int, default=1, help="of the size of the picture made")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    before = ours(options)
    reports, reference, failed = [before], Reference(options, before), []
    print(f"{before['device']} in {before['dtype']}, {options.size}, {before['image_tokens']} image and "
          f"{before['text_tokens']} text tokens, torch {torch.__version__}, {options.threads} threads", flush=True)
    # What is wanted most comes first.
    for part in (reference.steps, reference.autoencoder, reference.encoder):
        try:
            part()
        except Exception:  # whatever it is, the other parts and our side have their times
            failed.append(part.__name__)
            traceback.print_exc()
        release(reference.device)
        note(options.json, reports, reference, failed)
    reports.append(ours(options))
    stages = note(options.json, reports, reference, failed)
    print("\n| stage | ours s | diffusers s | ratio | ours CPU s | diffusers CPU s | ratio |\n|---|---|---|---|---|---|---|")
    for stage in stages:
        print("| {name} | {ours_s:.3f} | {theirs_s:.3f} | {ratio:.2f} | {ours_cpu_s:.2f} | {theirs_cpu_s:.2f} "
              "| {cpu_ratio:.2f} |".format(**stage))
    if "modulation" in (of_ours := best(reports)):
        print(f"\nmodulation, ours only, once a schedule: {of_ours['modulation'][0]:.3f} s "
              "(a part of every step of diffusers)")
    if failed:
        raise SystemExit(f"diffusers failed in: {', '.join(failed)}")


def release(device: torch.device) -> None:
    """Our program needs the memory that torch keeps."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def note(file: pathlib.Path | None, reports: list[dict], reference: Reference, failed: list[str]) -> list[dict]:
    """The stages that both sides have, which `file` is told, too."""
    of_ours, stages = best(reports), []
    for name, (seconds, cpu) in reference.clock.stages.items():
        our_seconds, our_cpu = of_ours[name]
        stages.append(dict(
            name=name, ours_s=our_seconds, theirs_s=seconds, ratio=our_seconds / seconds,
            ours_cpu_s=our_cpu, theirs_cpu_s=cpu, cpu_ratio=our_cpu / max(cpu, 1e-9),
        ))  # fmt: skip
    if file:
        versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, transformers=transformers.__version__)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(dict(stages=stages, failed=failed, versions=versions, ours=reports)))
        part.replace(file)
    return stages


if __name__ == "__main__":
    main()
