"""Reads what the recording driver wrote of a benchmark, and holds it against bounds.

    dry_run.py REPORT STEPS BLOCKS [BRANCHES] [--bound NUMBER] [--streams]

The benchmark waits for the card after every stage and every step, so each is a section
of the report. Prints a row of the launch table. Fails if the driver saw a fault, if a
block and branch takes more launches than the bound, or if the host waits within a step.
"""

import argparse
import json
import sys

STAGES = ["load", "start", "plan", "text encoder", "vae encoder", "modulation"]
WORK = ["launches", "products", "copies_on_card", "fills"]
COPIES = ["copies_to_card", "copies_to_card_pinned"]


def work(section: dict) -> int:
    """What the card is told to do: kernels, products, copies within it, fills."""
    return sum(section[kind] for kind in WORK)


def waits(section: dict, streams: bool) -> dict[str, int]:
    """For what the host waits, but for the benchmark's own wait at the end.

    Blocks that are uploaded while others are computed go through a few pieces of pinned
    memory; the host waits until one is free.
    """
    found = dict(section["by_wait"])
    found["for a stream"] = found.get("for a stream", 0) - 1
    if streams:
        found.pop("for an event", None)
    return {name: count for name, count in found.items() if count > 0}


def gib(count: int) -> str:
    return f"{count / 2**30:.2f}"


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("report")
    arguments.add_argument("steps", type=int)
    arguments.add_argument("blocks", type=int)
    arguments.add_argument("branches", type=int, nargs="?", default=2)
    arguments.add_argument("--bound", type=float, default=40.0)
    arguments.add_argument("--streams", action="store_true")
    arguments.add_argument("--label", default="")
    arguments.add_argument("--stages", action="store_true")
    given = arguments.parse_args()

    with open(given.report) as lines:
        lines = [json.loads(line) for line in lines]
    faults = [line for line in lines if "fault" in line]
    sections = [line for line in lines if "section" in line and "ended_by" in line]
    whole = next((line for line in lines if "all" in line), None)
    if whole is None or len(sections) < len(STAGES) + given.steps + 1:
        print(f"{given.label}: the report ends early", file=sys.stderr)
        return 1

    stages = dict(zip(STAGES, sections))
    steps = sections[len(STAGES) :][: given.steps]
    stages["vae decoder"] = sections[len(STAGES) + given.steps]
    last = steps[-1]
    each = work(last) / given.blocks / given.branches
    peak = max(section["peak_bytes"] for section in [*stages.values(), *steps][2:])
    print(
        f"| {given.label} | {each:.1f} | {work(last)} | {sum(last[kind] for kind in COPIES)} | {last['allocations']} "
        f"| {gib(last['allocations_bytes'])} | {gib(last['peak_bytes'])} | {gib(peak)} |"
    )
    if given.stages:
        for name, section in [*stages.items(), ("a step", last)]:
            told = sum(section[kind] for kind in COPIES)
            print(
                f"|   {name} | | {work(section)} | {told} | {section['allocations']} "
                f"| {gib(section['allocations_bytes'])} | {gib(section['peak_bytes'])} | |"
            )

    wrong = [f"{fault['fault']}: {fault['text']}" for fault in faults[:20]]
    if whole["faults"] > len(wrong):
        wrong.append(f"{whole['faults']} faults in all")
    if each > given.bound:
        wrong.append(f"{each:.1f} launches a block and branch, more than {given.bound}")
    for number, step in enumerate(steps, 1):
        found = waits(step, given.streams)
        if found:
            wrong.append(f"the host waits in step {number}: {found}")
    if not all(step["ended_by"] == "cuStreamSynchronize" for step in steps):
        wrong.append("a step ends otherwise than the benchmark's do")
    for text in wrong:
        print(f"{given.label}: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
