#!/usr/bin/env python3
"""Fills the table of docs/performance.md from what a machine with a card sent back.

    tools/gpu/fill_table.py [--doc docs/performance.md] RESULTS.json...

RESULTS: results.json of flight.py; of several calls, in order: a later number replaces an earlier
one. A cell whose part was not run, or did not come out well, says "not measured".
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import statistics
import sys

BEGIN, END = "<!-- card: begin -->", "<!-- card: end -->"
NOT_MEASURED = "not measured"
STEPS = 50
# Of pictures: part, and what it is.
RUNS = (
    ("whole", "Edit-2511, 1024x1024, bfloat16"),
    ("whole-fp8", "the same in fp8"),
    ("whole-without-flash", "without flash attention"),
    ("whole-composed", "without any fusion"),
    ("whole-512", "Edit-2511, 512x512, bfloat16"),
    ("whole-edit", "Edit, 1024x1024, bfloat16"),
)
# Parts with two layers of the text encoder: what a whole edit takes cannot be told from them.
CUT_SHORT = {"whole-fp8", "whole-without-flash", "whole-composed", "whole-512"}
STAGES_OF_AN_EDIT = ("plan", "text encoder", "vae encoder", "modulation", "vae decoder")


def well(results: list[dict]) -> dict[str, dict]:
    """The parts that came out well and have numbers."""
    parts = {}
    for result in results:
        for part in result["parts"]:
            if part["status"] == "ok" and part.get("report"):
                parts[part["name"]] = part["report"]
    return parts


def table(parts: dict[str, dict]) -> str:
    ceiling = max((product["tflops"] for product in parts.get("ceiling", {}).get("products", [])), default=None)
    lines = [
        machine(parts), "",
        "| picture | a step, s | TFLOP/s | of the ceiling | an edit of 50 steps, s | peak memory, GiB |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, title in RUNS:
        lines.append(row(title, picture(parts.get(name), ceiling, name not in CUT_SHORT)))
    lines += ["", "| | |", "|---|---|"]
    copy = parts.get("ceiling", {}).get("copy_gb_s")
    lines.append(row("a product of matrices at best, TFLOP/s", [number(ceiling, 0)]))
    lines.append(row("a copy on the card, GB/s", [number(copy, 0)]))
    stages = {stage["name"]: stage for stage in parts.get("diffusers", {}).get("stages", [])}
    for name in ("transformer pass", "text encoder", "vae encoder", "vae decoder"):
        ratio = stages.get(name, {}).get("ratio")
        cut = ", two layers" if name == "text encoder" else ""
        lines.append(row(f"{name}{cut}: ours over diffusers'", [number(ratio, 2)]))
    lines += ["", "| fusion left out | a step of 4 blocks is longer by |", "|---|---|"]
    whole = best_step_s(parts.get("blocks"))
    for fusion in fusions():
        without = best_step_s(parts.get(f"blocks-without-{fusion}"))
        more = f"{100 * (without / whole - 1):.1f} %" if whole and without else NOT_MEASURED
        lines.append(row(fusion, [more]))
    lines += ["", "| operations of the steps | of their time |", "|---|---|"]
    for kind in ("product", "attention", "norm", "activation", "elementwise", "copy", "between"):
        lines.append(row(kind, [share(parts.get("whole"), kind)]))
    return "\n".join(lines)


def fusions() -> list[str]:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
    from flight_plan import FUSIONS

    return FUSIONS


def machine(parts: dict[str, dict]) -> str:
    facts = parts.get("facts", {})
    card = facts.get("card", "").splitlines()
    return f"Measured on: {card[0]}." if card else f"Machine: {NOT_MEASURED}."


def row(title: str, cells: list[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def number(value: float | None, digits: int) -> str:
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def picture(report: dict | None, ceiling: float | None, is_whole: bool) -> list[str]:
    if not report or not report.get("runs"):
        return [NOT_MEASURED] * 5
    run = report["runs"][-1]  # the first one pays for what is set up once
    seconds = statistics.median(run["steps_s"])
    stages = {stage["name"]: stage for stage in run["stages"]}
    speed = stages["steps"]["tflop"] / len(run["steps_s"]) / seconds
    edit = sum(stages[name]["seconds"] for name in STAGES_OF_AN_EDIT) + STEPS * seconds
    of_ceiling = f"{100 * speed / ceiling:.0f} %" if ceiling else NOT_MEASURED
    peak = report.get("peak_bytes")
    return [
        number(seconds, 3), number(speed, 0), of_ceiling, number(edit if is_whole else None, 1),
        number(peak / 2**30 if peak else None, 1),
    ]  # fmt: skip


def best_step_s(report: dict | None) -> float | None:
    if not report or not report.get("runs"):
        return None
    return min(min(run["steps_s"]) for run in report["runs"])


def share(report: dict | None, kind: str) -> str:
    """Of a kind of operations in the time of the steps; "between" is what none of them names."""
    times = [time for time in (report or {}).get("operations", []) if time["stage"] == "steps"]
    whole = sum(time["seconds"] for time in times)
    if not whole:
        return NOT_MEASURED
    kind = "stage" if kind == "between" else kind
    return f"{100 * sum(time['seconds'] for time in times if time['kind'] == kind) / whole:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=pathlib.Path, help="none: an empty table")
    parser.add_argument("--doc", type=pathlib.Path, default=pathlib.Path("docs/performance.md"))
    options = parser.parse_args()
    parts = well([json.loads(file.read_text()) for file in options.results])
    text = options.doc.read_text()
    if not (BEGIN in text and END in text):
        sys.exit(f"{options.doc} has no place for the table: {BEGIN} … {END}")
    filled = f"{BEGIN}\n{table(parts)}\n{END}"
    options.doc.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: filled, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
