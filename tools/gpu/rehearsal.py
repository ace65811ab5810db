"""Holds what came back from rehearse.sh against what has happened there.

    rehearsal.py FOLDER FILL_TABLE DOC
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

FILES, FILE_BYTES = 8, 16 * 2**20


def came_back(folder: pathlib.Path) -> tuple[dict, dict[str, dict], str]:
    """The results, each part by its name, and the log; all of it within what may come back."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) <= FILES, files
    for file in files:
        assert file.stat().st_size <= FILE_BYTES, file
        path = file.relative_to(folder)
        assert len(path.parts) <= 3 and all(re.fullmatch(r"[A-Za-z0-9._-]+", part) for part in path.parts), path
    results = json.loads((folder / "results.json").read_text())
    parts = {part["name"]: part for part in results["parts"]}
    summary = (folder / "summary.md").read_text()
    assert all(f"| {name} |" in summary for name in parts), summary
    return results, parts, (folder / "log.txt").read_text(errors="replace")


def expect(parts: dict[str, dict], statuses: dict[str, str]) -> None:
    seen = {name: parts[name]["status"] for name in statuses}
    assert seen == statuses, json.dumps({name: parts[name] for name in statuses if seen[name] != statuses[name]}, indent=1)


def first(folder: pathlib.Path) -> dict[str, dict]:
    results, parts, log = came_back(folder)
    assert results["state"] == "landed"
    families = "product modulation attention convolution fp8".split()
    expect(parts, {f"kernels-{family}": "ok" for family in families} | {
        "facts": "ok",
        "kernels-activation": "crashed",
        "kernels-heads": "timed out",
        "kernels-norm": "failed",
        "kernels-guidance": "failed",
        # The diagnosis of those that failed, and of no other.
        "sanitizer-activation-now": "failed",
        "sanitizer-heads-now": "failed",
        "sanitizer-product-now": "not needed",
        "check-bfloat16": "ok",
        "ceiling": "ok",
        "blocks": "ok",
        "whole-fp8": "ok",
        "blocks-without-rms-norm": "ok",
    })  # fmt: skip
    assert parts["kernels-activation"]["reason"] == "SIGSEGV"
    # Neither the crash nor the hang loses what was seen before.
    for name in ("kernels-activation", "kernels-heads"):
        assert len(parts[name]["report"]) > 5 and "| right |" in parts[name]["tail"], parts[name]
    assert parts["kernels-norm"]["reason"] == "it writes without end"
    assert "the device is wrong" in parts["kernels-guidance"]["tail"]
    assert "Invalid __global__ write" in log
    stages = parts["check-bfloat16"]["report"][0]["stages"]
    assert stages[0]["stage"].startswith("text encoder") and len(stages) > 5
    assert parts["ceiling"]["report"]["products"][0]["tflops"] > 0
    kinds = {time["kind"] for time in parts["blocks"]["report"]["operations"] if time["stage"] == "steps"}
    assert {"product", "attention", "norm", "copy", "elementwise", "stage"} <= kinds, kinds
    events = json.loads((folder / "trace-blocks.json").read_text())["traceEvents"]
    assert {"step 0", "step 1", "attention"} <= {event["name"] for event in events}
    return parts


def killed(folder: pathlib.Path, signal: str) -> None:
    results, parts, log = came_back(folder)
    expect(parts, {"kernels-product": "ok", "ceiling": "waiting"})
    assert "| joint heads |" in log
    if signal == "TERM":
        assert results["state"] == "stopped by SIGTERM"
        expect(parts, {"kernels-heads": "stopped"})
        assert len(parts["kernels-heads"]["report"]) > 5
    else:
        expect(parts, {"kernels-heads": "running"})
        assert len(json.loads((folder / "current.json").read_text())) > 5
    # Nothing lives on that would hold a card.
    for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes()
        except OSError:
            continue
        assert str(folder).encode() not in command, command


def second(folder: pathlib.Path) -> None:
    _, parts, _ = came_back(folder)
    again = {"kernels-activation", "kernels-heads", "kernels-norm", "kernels-guidance", "ceiling", "diffusers"}
    again |= {name for name in parts if name.startswith("sanitizer-") and name.endswith("-now")}
    assert set(parts) == again, parts.keys()
    expect(parts, {"ceiling": "ok"})
    assert parts["diffusers"]["status"] in ("ok", "failed", "timed out"), parts["diffusers"]


def filled(work: pathlib.Path, script: str, doc: str) -> None:
    """The table of made-up numbers, of none, and of those of this rehearsal."""
    def table(*results: object) -> str:
        copy = work / "table.md"
        shutil.copy(doc, copy)
        files = []
        for index, result in enumerate(results):
            files.append(work / f"made-up-{index}.json")
            files[-1].write_text(json.dumps(result))
        subprocess.run([sys.executable, script, "--doc", copy, *files], check=True)
        return copy.read_text()

    assert table() == pathlib.Path(doc).read_text(), "the table in the document is not the script's"
    stages = [{"name": name, "seconds": 0.5, "tflop": 0.0} for name in ("plan", "text encoder", "vae encoder", "modulation", "vae decoder")]
    stages.append({"name": "steps", "seconds": 6.0, "tflop": 900.0})
    cold = {"stages": stages, "steps_s": [9.0, 9.0, 9.0]}
    warm = {"stages": stages, "steps_s": [1.0, 3.0, 2.0]}
    time = {"stage": "steps", "name": "x", "calls": 1, "tflop": 0.0}
    operations = [time | {"kind": "product", "seconds": 3.0}, time | {"kind": "stage", "seconds": 1.0}]
    part = lambda name, report, status="ok": {"name": name, "status": status, "report": report}
    before = {"parts": [
        part("facts", {"card": "A card, 580, 1 MiB, 9.0"}),
        part("ceiling", {"products": [{"tflops": 500.0}, {"tflops": 600.0}], "copy_gb_s": 4300.4}),
        part("whole", {"runs": [cold], "operations": [], "peak_bytes": None}),
        part("whole-fp8", {"runs": [warm], "peak_bytes": 2**31}, "crashed"),
        part("blocks", {"runs": [warm]}),
        part("blocks-without-rms-norm", {"runs": [warm | {"steps_s": [1.25]}]}),
    ]}  # fmt: skip
    after = {"parts": [
        part("whole", {"runs": [cold, warm], "operations": operations, "peak_bytes": 3 * 2**30}),
        part("diffusers", {"stages": [{"name": "transformer pass", "ratio": 0.512}]}),
    ]}  # fmt: skip
    text = table(before, after)
    for line in (
        "Measured on: A card, 580, 1 MiB, 9.0.",
        # 2 s a step, 300 TFLOP each; 2.5 s of other stages and 50 steps.
        "| Edit-2511, 1024x1024, bfloat16 | 2.000 | 150 | 25 % | 102.5 | 3.0 |",
        "| the same in fp8 | not measured | not measured | not measured | not measured | not measured |",
        "| a product of matrices at best, TFLOP/s | 600 |",
        "| a copy on the card, GB/s | 4300 |",
        "| transformer pass: ours over diffusers' | 0.51 |",
        "| rms-norm | 25.0 % |",
        "| guidance | not measured |",
        "| product | 75.0 % |",
        "| between | 25.0 % |",
    ):
        assert line in text, f"{line}\n{text}"
    rehearsed = table(json.loads((work / "first/results.json").read_text()))
    assert re.search(r"\| product \| not measured \|", rehearsed), "no whole picture was made"
    assert re.search(r"\| rms-norm \| -?[\d.]+ % \|", rehearsed)


def main() -> None:
    work, script, doc = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    first(work / "first")
    for signal in ("TERM", "KILL"):
        killed(work / f"killed-{signal}", signal)
    second(work / "second")
    filled(work, script, doc)
    print("all that was seen came back")


if __name__ == "__main__":
    main()
