"""What is run on a machine with a card, most valuable first: data for flight.py."""

from __future__ import annotations

import pathlib
import sys
from dataclasses import dataclass, field

TOOLS = pathlib.Path(__file__).resolve().parent
FAMILIES = ("product", "modulation", "heads", "activation", "norm", "guidance", "attention", "convolution", "fp8")
# Every fusion of `bench --without`, for the composition of candle's own operations.
FUSIONS = ("flash-attention softmax layer-norm-modulation gated-add joint-heads bias-activation gelu-epilogue "
           "gated-silu guidance channel-norm rms-norm").split()


@dataclass(frozen=True)
class Part:
    """A process of its own. `{json}` and `{trace}` in its command are files that come back."""

    name: str
    limit_s: float
    command: list[str]
    # Run only if that part was tried and did not come out well: a diagnosis.
    if_failed: str | None = None
    # A program that the machine must have.
    needs: str | None = None
    # Seconds that parts before it must leave.
    reserved_s: float = 0.0


@dataclass(frozen=True)
class Settings:
    """On what, and with what."""

    program: str
    device: str = "cuda"
    # Tiny models and sizes: to rehearse where there is no card.
    is_miniature: bool = False
    python: str = sys.executable
    bench: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bench", [self.program, "bench", "--device", self.device])

    def kernels(self, family: str, sizes: str, *more: str) -> list[str]:
        sizes = "small" if self.is_miniature else sizes
        return [*self.bench, "--kernels", "--family", family, "--sizes", sizes, "--json", "{json}", *more]

    def model(self, name: str, *more: str) -> list[str]:
        """A picture of a published model, or of the tiny one in its place."""
        shape = ["--model", "tiny-random", "--size", "64x64"] if self.is_miniature else ["--model", name]
        # A part of its own measures the ceiling.
        return [*self.bench, *shape, "--skip-ceiling", "--json", "{json}", *more]


def first(settings: Settings) -> list[Part]:
    """The first call: is it right, where does the time go, how fast is it. About seven minutes."""
    bench, kernels, model = settings.bench, settings.kernels, settings.model
    bf16 = ("--dtype", "float32" if settings.is_miniature else "bfloat16")
    edit = "qwen-image-edit-2511"
    size_512 = ("--size", "64x64" if settings.is_miniature else "512x512")
    parts = [Part("facts", 25, [settings.python, str(TOOLS / "flight.py"), "--facts", "{json}"])]
    for family in FAMILIES:
        name = f"kernels-{family}"
        parts.append(Part(name, 25, kernels(family, "odd")))
        parts.append(Part(f"sanitizer-{family}-now", 40, sanitized(kernels(family, "small")), if_failed=name,
                          needs="compute-sanitizer"))
    # With flash attention the softmax and the products of scores are not seen.
    parts.append(Part("kernels-attention-composed", 25, kernels("attention", "odd", "--without", "flash-attention")))
    for dtype in ("float32", "bfloat16"):
        parts.append(Part(f"check-{dtype}", 30, [*bench, "--check", "--dtype", dtype, "--json", "{json}"]))
    parts += [
        Part("ceiling", 30, [*bench, "--ceiling", *bf16, "--json", "{json}"]),
        Part("blocks", 45, model(edit, *bf16, "--layers", "4", "--text-layers", "2", "--vision-layers", "2",
                                 "--steps", "3", "--trace", "{trace}")),
        Part("whole", 100, model(edit, *bf16, "--steps", "4", "--trace", "{trace}")),
    ]  # fmt: skip
    parts += [Part(f"full-{family}", 30, kernels(family, "full")) for family in FAMILIES]
    some = ("--steps", "3", "--text-layers", "2", "--vision-layers", "2")
    fp8 = ("--dtype", "fp8-weights" if settings.is_miniature else "fp8")
    parts += [
        Part("whole-fp8", 75, model(edit, *fp8, *some)),
        Part("whole-without-flash", 75, model(edit, *bf16, *some, "--without", "flash-attention", "--trace", "{trace}")),
        Part("whole-fp8-without-flash", 75, model(edit, *fp8, *some, "--without", "flash-attention"), if_failed="whole-fp8"),
        Part("whole-composed", 75, model(edit, *bf16, *some, "--without", ",".join(FUSIONS))),
        Part("check-float16", 30, [*bench, "--check", "--dtype", "float16", "--json", "{json}"]),
        Part("whole-512", 60, model(edit, *bf16, *some, *size_512)),
        Part("whole-edit", 75, model("qwen-image-edit", *bf16, "--steps", "3")),
    ]  # fmt: skip
    parts += [
        Part(f"sanitizer-{family}", 40, sanitized(kernels(family, "small")), needs="compute-sanitizer")
        for family in FAMILIES
    ]
    # What one fusion brings, on a few blocks.
    few = ("--layers", "4", "--text-layers", "1", "--vision-layers", "1", "--steps", "3")
    parts += [Part(f"blocks-without-{fusion}", 30, model(edit, *bf16, *few, "--without", fusion)) for fusion in FUSIONS]
    return parts


def sanitized(command: list[str]) -> list[str]:
    return ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", *command]


def second(settings: Settings, again: set[str]) -> list[Part]:
    """The second call: the parts of the first one that `again` names, then diffusers beside us."""
    theirs = [
        settings.python, str(TOOLS.parent / "bench/diffusers_bench.py"), "--binary", settings.program,
        "--model", "qwen-image-edit-2511", "--device", settings.device,
        "--dtypes", "float32" if settings.is_miniature else "bfloat16",
        "--passes", "3", "--repeats", "2", "--rounds", "1", "--text-layers", "2", "--vision-layers", "2", "--json", "{json}",
    ]  # fmt: skip
    if settings.is_miniature:
        theirs += ["--layers", "1", "--sizes", "64x64"]
    parts = [part for part in first(settings) if part.name in again]
    return [*parts, Part("diffusers", 130, theirs, reserved_s=110)]
