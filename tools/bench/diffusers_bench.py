#!/usr/bin/env python3
"""Times `diffuser-api bench` and diffusers on the same shapes, in turns, and prints the ratios.

    python tools/bench/diffusers_bench.py --binary target/release/diffuser-api --layers 2 --text-layers 2 \\
        --vision-layers 2 --sizes 256x256 512x512 --threads 1 2 --dtypes float32 bfloat16 --json bench.json

Needs torch, diffusers and transformers (tools/demo-model/requirements.txt), no checkpoint: both sides have random
weights. What is compared is what a picture needs on both sides:

- a pass of the transformer, however many a step has; the modulation is a part of it in diffusers, ours has it once
  for all steps, in a row of its own. Of its last block ours computes what is read and diffusers all: with few
  --layers that is much of a pass, so compare TFLOP/s, or two runs that differ by a layer;
- the text encoder up to its hidden states: without the words' probabilities, which diffusers computes and drops;
  pictures are encoded once for both prompts (--prompts 2), which have as many words;
- the VAE as diffusers has it, over two frames of zeros, and "folded" to two dimensions as ours is.

Each stage has a process of its own on each side, one after the other: ours, theirs, ours, theirs, --rounds times, each
the best of --repeats, and the best of all counts. CPU seconds (of all threads) are the steadier number where other
programs run; on a GPU they say nothing. Memory is the most that a process had during a stage beside what it had
before, with its weights. What fails on one side leaves the other's times, and --json FILE has at any moment what is
known. How time and memory grow is told as the exponent of the pixels, once there are two sizes.

A megapixel takes minutes a stage: run it in pieces (--stages, --sides, --vae folded), each with a file of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import machine

HERE = pathlib.Path(__file__).resolve().parent
STAGES = ("transformer", "text-encoder", "vae-encoder", "vae-decoder")  # what is wanted most comes first
SIDES = ("ours", "theirs")
# What torch is asked for beside formats that it does not have, by device.
NEAREST = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
GIB = 2**30


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path("target/release/diffuser-api"))
    parser.add_argument("--model", default="qwen-image-edit", choices=("qwen-image", "qwen-image-edit", "qwen-image-edit-2511"))
    parser.add_argument("--layers", type=int, help="blocks of the transformer; all without it")
    parser.add_argument("--text-layers", type=int)
    parser.add_argument("--vision-layers", type=int)
    parser.add_argument("--sizes", nargs="+", default=["1024x1024"], metavar="WxH")
    parser.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count()])
    parser.add_argument("--dtypes", nargs="+", default=["auto"], help="of ours; torch has the nearest that it knows")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--vae", default="both", choices=("both", "whole", "folded"), help="diffusers' forms of it")
    parser.add_argument("--references", type=int, help="of the size of the picture made; one for models that edit")
    parser.add_argument("--words", type=int, default=41, help="tokens of each prompt, pictures not counted")
    parser.add_argument("--prompts", type=int, default=1, choices=(1, 2), help="2: with a negative prompt")
    parser.add_argument("--passes", type=int, default=1, help="of the transformer, each time")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="of each process")
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    options = parser.parse_args()
    if options.references is None:
        options.references = int(options.model != "qwen-image")
    return options


class Bench:
    """What was asked for, and what is known."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.cpu = options, machine.cpu()
        self.versions, self.failed, self.shapes = {}, [], {}
        # (stage, size, dtype, threads) → side → the best of everything; and the loads meanwhile.
        self.best: dict[tuple, dict[str, dict]] = {}
        self.loads: dict[tuple, list[float]] = {}

    def run(self) -> None:
        options = self.options
        for threads in options.threads:
            for dtype in options.dtypes:
                for size in options.sizes:
                    for part in options.stages:
                        for round in range(options.rounds):
                            for side in options.sides:
                                self.once(side, part, (size, dtype, threads), round)

    def once(self, side: str, part: str, case: tuple, round: int) -> None:
        size, dtype, threads = case
        print(f"{part}, {size}, {dtype}, {threads} threads, round {round + 1}: {side}", file=sys.stderr, flush=True)
        before = machine.load()
        try:
            for taken in (self.ours if side == "ours" else self.theirs)(part, case):
                self.keep(side, (taken["name"], *case), taken)
        except Exception as error:  # whatever it is, the other side and the other stages have their times
            self.failed.append(dict(side=side, stage=part, size=size, dtype=dtype, threads=threads, why=str(error)))
            print(f"  failed: {error}", file=sys.stderr, flush=True)
        for key in self.best:
            if key[1:] == case and key[0].startswith(name_of(part)):
                self.loads.setdefault(key, []).append(max(before, machine.load()))
        self.write()

    def keep(self, side: str, key: tuple, taken: dict) -> None:
        known = self.best.setdefault(key, {}).setdefault(side, taken)
        for number in ("seconds", "cpu_s"):
            known[number] = min(known[number], taken[number])
        peaks = [peak for peak in (known["peak_bytes"], taken["peak_bytes"]) if peak is not None]
        known["peak_bytes"] = max(peaks, default=None)

    def shape(self, size: str) -> dict:
        """Tokens of a pass, and patches of what the text encoder sees, by arithmetic."""
        if size not in self.shapes:
            self.shapes[size] = self.report(["--estimate", *self.ask(size)])
        return self.shapes[size]

    def ask(self, size: str) -> list[str]:
        options = self.options
        asked = dict(model=options.model, size=size, steps=options.passes, guidance=4 if options.prompts == 2 else 1,
                     repeats=options.repeats, references=options.references, words=options.words, layers=options.layers,
                     text_layers=options.text_layers, vision_layers=options.vision_layers)  # fmt: skip
        given = [(name, value) for name, value in asked.items() if value is not None]
        return [word for name, value in given for word in (f"--{name.replace('_', '-')}", str(value))]

    def report(self, arguments: list[str], threads: int = 1) -> dict:
        """What a run of our program writes."""
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "report.json"
            command = [str(self.options.binary), "bench", "--threads", str(threads), "--json", str(file), *arguments]
            self.process(command)
            return json.loads(file.read_text())

    def process(self, command: list[str], environment: dict | None = None) -> str:
        try:
            made = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=self.options.limit)
        except subprocess.TimeoutExpired as late:
            raise Failed(f"took more than {self.options.limit:.0f} s", late.stdout or b"") from None
        if made.returncode != 0:
            last = (made.stderr.strip() or "no word").splitlines()[-1]
            raise Failed(f"exit status {made.returncode}: {last}", made.stdout)
        return made.stdout

    def ours(self, part: str, case: tuple) -> list[dict]:
        size, dtype, threads = case
        device = ["--device", self.options.device, "--dtype", dtype]
        report = self.report(["--skip-ceiling", "--stages", part, *device, *self.ask(size)], threads)
        passes, stages = self.options.passes * self.options.prompts, []
        for run in report["runs"]:
            for stage in run["stages"]:
                name, seconds, cpu_s, peak = stage["name"], stage["seconds"], stage["cpu_s"], stage["peak_bytes"]
                if name == "plan":
                    continue
                if name == "steps":
                    name, seconds = "transformer pass", min(run["steps_s"]) / self.options.prompts
                    cpu_s /= passes
                beside = None if peak is None or report["loaded_bytes"] is None else peak - report["loaded_bytes"]
                stages.append(dict(name=name, seconds=seconds, cpu_s=cpu_s, peak_bytes=beside))
        return stages

    def theirs(self, part: str, case: tuple) -> list[dict]:
        """As far as they got: what fails later takes nothing away."""
        size, dtype, threads = case
        options, shape = self.options, self.shape(size)
        given = dict(part=part, size=[int(side) for side in size.split("x")], threads=threads, device=options.device,
                     dtype=self.dtype_of_theirs(dtype))  # fmt: skip
        given |= {name: shape[name] for name in ("image_tokens", "text_tokens", "shown_patches")}
        for name in ("model", "layers", "text_layers", "vision_layers", "references", "prompts", "passes", "repeats", "vae"):
            given[name] = getattr(options, name)
        failure = None
        try:
            said = self.process([sys.executable, str(HERE / "reference.py"), json.dumps(given)])
        except Failed as error:
            said, failure = error.said, error
        lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        self.versions |= next((line["versions"] for line in lines if "versions" in line), {})
        stages = [line for line in lines if "name" in line]
        if failure is None:
            return stages
        for taken in stages:
            self.keep("theirs", (taken["name"], *case), taken)
        raise failure

    def dtype_of_theirs(self, dtype: str) -> str:
        on_card = self.options.device not in ("cpu", "auto")
        return NEAREST.get(dtype, "bfloat16" if on_card else "float32")

    def rows(self) -> list[dict]:
        """Each stage with what both sides took; ours stands beside both forms of diffusers' VAE."""
        rows = []
        for key in sorted(self.best, key=order):
            name, size, dtype, threads = key
            ours, theirs = self.best.get((name.removesuffix(", folded"), *key[1:]), {}).get("ours"), self.best[key].get("theirs")
            row = dict(name=name, size=size, dtype=dtype, theirs_dtype=self.dtype_of_theirs(dtype), threads=threads)
            for field, number, ratio in (
                ("seconds", "s", "ratio"), ("cpu_s", "cpu_s", "cpu_ratio"), ("peak_bytes", "bytes", "memory_ratio"),
            ):  # fmt: skip
                pair = [side and side[field] for side in (ours, theirs)]
                row[f"ours_{number}"], row[f"theirs_{number}"] = pair
                row[ratio] = pair[0] / pair[1] if all(pair) else None
            rows.append(row | dict(load=max(self.loads.get(key, [math.nan]))))
        return rows

    def growth(self, rows: list[dict]) -> list[dict]:
        """Of each stage with two sizes: the exponents of its time and memory over the pixels."""
        grown = []
        for case in dict.fromkeys((row["name"], row["dtype"], row["threads"]) for row in rows):
            alike = [row for row in rows if (row["name"], row["dtype"], row["threads"]) == case]
            line = dict(name=case[0], dtype=case[1], threads=case[2], sizes=[row["size"] for row in alike])
            for number in ("ours_s", "theirs_s", "ours_bytes", "theirs_bytes"):
                line[number] = exponent([(pixels(row["size"]), row[number]) for row in alike])
            if any(line[number] is not None for number in ("ours_s", "theirs_s")):
                grown.append(line)
        return grown

    def write(self) -> None:
        file = self.options.json
        if not file:
            return
        rows = self.rows()
        known = dict(stages=rows, growth=self.growth(rows), failed=self.failed, cpu=self.cpu, versions=self.versions,
                     command=sys.argv[1:])  # fmt: skip
        part = file.with_suffix(".part")
        part.write_text(json.dumps(known, indent=1, default=str).replace("NaN", "null"))
        part.replace(file)

    def tables(self) -> str:
        rows = self.rows()
        lines = [
            f"{machine.sentence(self.cpu)}; torch {self.versions.get('torch', 'not run')}, diffusers "
            f"{self.versions.get('diffusers', 'not run')}; {self.options.model}, {self.options.references} reference "
            f"pictures, {self.options.words} tokens of words; the best of {self.options.rounds * self.options.repeats}",
            "",
            "| size | format | threads | stage | ours s | torch s | ratio | ours CPU s | torch CPU s | ratio | ours GiB | torch GiB | load |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for row in rows:
            same = row["dtype"] in ("auto", row["theirs_dtype"])
            cells = [
                row["size"], row["dtype"] if same else f"{row['dtype']}, torch {row['theirs_dtype']}", str(row["threads"]),
                row["name"], number(row["ours_s"], 3), number(row["theirs_s"], 3), number(row["ratio"], 2),
                number(row["ours_cpu_s"], 2), number(row["theirs_cpu_s"], 2), number(row["cpu_ratio"], 2),
                gib(row["ours_bytes"]), gib(row["theirs_bytes"]), number(row["load"], 1),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        if growth := self.growth(rows):
            lines += ["", "Exponents of the pixels:", "",
                      "| stage | format | threads | sizes | ours, time | torch, time | ours, memory | torch, memory |",
                      "|---|---|---|---|---|---|---|---|"]  # fmt: skip
            for line in growth:
                numbers = [number(line[name], 2) for name in ("ours_s", "theirs_s", "ours_bytes", "theirs_bytes")]
                cells = [line["name"], line["dtype"], str(line["threads"]), ", ".join(line["sizes"]), *numbers]
                lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


class Failed(Exception):
    """A process that did not end well, and what it had said."""

    def __init__(self, why: str, said: str | bytes) -> None:
        super().__init__(why)
        self.said = said.decode() if isinstance(said, bytes) else said


def name_of(part: str) -> str:
    return part.replace("-", " ")


def order(key: tuple) -> tuple:
    """Of rows: size by size, and in each of them as the stages are."""
    name, size, dtype, threads = key
    stages = ("transformer pass", "modulation", "text encoder", "vae encoder", "vae decoder")
    return threads, dtype, pixels(size), size, stages.index(name.removesuffix(", folded")), name


def pixels(size: str) -> int:
    return math.prod(int(side) for side in size.split("x"))


def exponent(points: list[tuple[int, float | None]]) -> float | None:
    """The slope of the line that lies nearest to the logarithms of `points`."""
    known = [(math.log(x), math.log(y)) for x, y in points if y and y > 0]
    if len({x for x, _ in known}) < 2:
        return None
    mean_x, mean_y = (sum(numbers) / len(known) for numbers in zip(*known))
    return sum((x - mean_x) * (y - mean_y) for x, y in known) / sum((x - mean_x) ** 2 for x, _ in known)


def number(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def gib(count: int | None) -> str:
    return number(None if count is None else count / GIB, 2)


def main() -> None:
    bench = Bench(parsed())
    try:
        bench.run()
    finally:
        print(bench.tables(), flush=True)
    if bench.failed:
        failed = ", ".join(f"{it['side']} in {it['stage']} at {it['size']}" for it in bench.failed)
        raise SystemExit(f"failed: {failed}")


if __name__ == "__main__":
    main()
