#!/usr/bin/env python3
"""Runs the parts of flight_plan.py on a machine with a card; whatever happens, what was seen comes back.

    tools/gpu/flight.py PROGRAM [--plan first]
    tools/gpu/flight.py PROGRAM --plan second --since results.json [--mended 'kernels-*,whole']

Each part is a process of its own with its own time limit: one that crashes, hangs, cannot be killed or
writes without end is noted, and the next one begins. Files of the folder --out, never more than eight:

    results.json   every part: command, how it ended, seconds, the end of its output, its numbers
    summary.md     a line for each part
    log.txt        all output, written by the parts themselves
    current.json   numbers of the part that is running, as far as it has come
    trace-*.json   what browsers show as traces

All are whole at any moment at which this program, or the machine, may be stopped.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import fnmatch
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import flight_plan
from flight_plan import Part, Settings

# What may come back: so many bytes of a file. The log of a part, and its end in the results.
FILE_BYTES = 16 * 2**20
LOG_BYTES_OF_A_PART = 512 * 2**10
TAIL_BYTES = 6 * 2**10
# After it is asked to end, and after it is killed.
GRACE_S = 2.0
DEATH_S = 5.0
# Less is not worth beginning a part with.
LEAST_S = 4.0
BUDGETS_S = {"first": 470, "second": 230}
PARENT_DEATH_SIGNAL = 1  # of prctl
# pip takes seconds to say the same.
PACKAGES = (
    "import importlib.metadata as m; names = (\"torch\", \"transformers\", \"diffusers\", \"numpy\", \"triton\"); "
    "print(*(d.name + \" \" + d.version for d in m.distributions() if d.name in names or d.name.startswith(\"nvidia\")))"
)
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(Exception):
    """Somebody asked this program to end."""


class Flight:
    """The parts, and what has become of them."""

    def __init__(self, parts: list[Part], out: pathlib.Path, budget_s: float, plan: str) -> None:
        self.parts, self.out = parts, out
        self.ends = time.monotonic() + budget_s
        out.mkdir(parents=True, exist_ok=True)
        self.records = [{"name": part.name, "status": "waiting"} for part in parts]
        self.results = {
            "plan": plan,
            "began": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            "budget_s": budget_s,
            "state": "flying",
            "parts": self.records,
        }
        self.write()

    def fly(self) -> int:
        state = "landed"
        try:
            for index, part in enumerate(self.parts):
                self.one(index, part)
                self.write()
                say(line_of(self.records[index]))
        except Stopped as stopped:
            state = f"stopped by {stopped}"
        self.results["state"] = state
        self.write()
        say("\n" + self.summary())
        if state != "landed":
            return 143
        return 0 if all(record["status"] in ("ok", "not needed") for record in self.records) else 1

    def one(self, index: int, part: Part) -> None:
        record = self.records[index]
        if part.if_failed and self.status_of(part.if_failed) in ("ok", "skipped", "waiting"):
            record["status"] = "not needed"
            return
        if part.needs and not shutil.which(part.needs):
            record.update(status="skipped", reason=f"there is no {part.needs}")
            return
        reserved = sum(later.reserved_s for later in self.parts[index + 1 :])
        limit = min(part.limit_s, self.ends - time.monotonic() - reserved)
        if limit < LEAST_S:
            record.update(status="skipped", reason="no time is left")
            return
        fresh(self.out / "current.json")
        trace = self.out / f"trace-{part.name}.json"
        files = {"{json}": str(self.out / "current.json"), "{trace}": str(trace)}
        command = [files.get(argument, argument) for argument in part.command]
        record.update(status="running", limit_s=round(limit, 1), command=command)
        self.write()
        log = self.out / "log.txt"
        with log.open("ab") as file:
            file.write(f"\n== {part.name} (at most {limit:.0f} s)\n".encode())
        start_of_output, started = log.stat().st_size, time.monotonic()
        try:
            record.update(run(command, limit, log))
        except Stopped:
            record["status"] = "stopped"
            raise
        finally:
            # Between two looks at the file a program writes a lot.
            if log.stat().st_size > start_of_output + LOG_BYTES_OF_A_PART:
                os.truncate(log, start_of_output + LOG_BYTES_OF_A_PART)
            record["seconds"] = round(time.monotonic() - started, 2)
            record["tail"] = tail(log, start_of_output)
            record["report"] = report_in(self.out / "current.json")
            fresh(self.out / "current.json")
            squeezed(trace)

    def status_of(self, name: str) -> str:
        return next((record["status"] for record in self.records if record["name"] == name), "waiting")

    def summary(self) -> str:
        return "\n".join(["| part | status | seconds | seen |", "|---|---|---|---|", *map(line_of, self.records)])

    def write(self) -> None:
        replace(self.out / "results.json", json.dumps(self.results, indent=1))
        replace(self.out / "summary.md", self.summary() + "\n")


def say(text: str) -> None:
    """Tells whoever still listens; that nobody does ends nothing."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")


def replace(file: pathlib.Path, text: str) -> None:
    """Replaces a file at once: what lies there is always whole."""
    part = file.with_name(file.name + ".part")
    part.write_text(text)
    part.replace(file)


def fresh(file: pathlib.Path) -> None:
    for old in (file, file.with_suffix(".part")):
        old.unlink(missing_ok=True)


def die_with_parent() -> None:
    """In the child: no part may live on when this program is killed."""
    try:
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    except (AttributeError, OSError):
        pass


def run(command: list[str], limit_s: float, log: pathlib.Path) -> dict:
    """How a command ended, whose output goes into `log` without passing through here."""
    with log.open("ab") as output:
        before = log.stat().st_size
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0,
                preexec_fn=die_with_parent,
            )  # fmt: skip
        except OSError as error:
            return {"status": "failed", "reason": str(error)}
    ends = time.monotonic() + limit_s
    try:
        while process.poll() is None:
            if time.monotonic() > ends:
                return {"status": "timed out", **ended(process)}
            if log.stat().st_size - before > LOG_BYTES_OF_A_PART:
                return {"status": "failed", "reason": "it writes without end", **ended(process)}
            time.sleep(0.05)
    except Stopped:
        ended(process)
        raise
    code = process.returncode
    # A shell between us and the program tells of a signal as 128 and its number.
    number = -code if code < 0 else code - 128
    if number in signal.valid_signals() and number > 0:
        return {"status": "crashed", "reason": signal.Signals(number).name, "exit": code}
    return {"status": "ok" if code == 0 else "failed", "exit": code}


def ended(process: subprocess.Popen) -> dict:
    """Ends a process with all that it has started; one that a driver holds is left behind."""
    for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, DEATH_S)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(patience)
            if number == signal.SIGTERM:
                continue  # what it has started may still be there
            return {}
        except subprocess.TimeoutExpired:
            continue
    return {"reason": "it cannot be killed"}


def tail(log: pathlib.Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def report_in(file: pathlib.Path):
    """The numbers that a part has written: none, or those until it was ended."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return {"unreadable": str(error)}


def squeezed(trace: pathlib.Path) -> None:
    if trace.exists() and trace.stat().st_size > FILE_BYTES:
        with gzip.open(trace.with_suffix(".json.gz"), "wb") as file:
            file.write(trace.read_bytes())
        trace.unlink()


def line_of(record: dict) -> str:
    status = record["status"] + (f" ({record['reason']})" if record.get("reason") else "")
    return f"| {record['name']} | {status} | {record.get('seconds', '')} | {seen(record.get('report'))} |"


def seen(report) -> str:
    """The one thing to know of a part's numbers."""
    if isinstance(report, list):  # checks
        wrong = [check for check in report if check.get("refusal") or check.get("wrong")]
        wrong += [check for check in report if "decibels" in check and is_below(check)]
        first = f"; first {wrong[0].get('step') or wrong[0].get('model')} in {wrong[0]['dtype']}" if wrong else ""
        return f"{len(report) - len(wrong)} of {len(report)} right{first}"
    if not isinstance(report, dict):
        return ""
    if report.get("runs"):
        peak = f", {report['peak_bytes'] / 2**30:.1f} GiB" if report.get("peak_bytes") else ""
        return f"{best_step_s(report):.4f} s a step{peak}"
    if report.get("products"):
        return f"{max(product['tflops'] for product in report['products']):.3g} TFLOP/s"
    if report.get("stages"):
        return "; ".join(f"{stage['name']} {stage['ratio']:.2f}" for stage in report["stages"])
    return ""


def is_below(check: dict) -> bool:
    decibels = check["decibels"]  # null is infinity
    return decibels is not None and not decibels >= check["least_decibels"]


def best_step_s(report: dict) -> float:
    return min(min(run["steps_s"]) for run in report["runs"])


def facts(file: pathlib.Path) -> int:
    """Notes what the machine is and has."""
    commands = {
        "card": "nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader",
        "clocks": "nvidia-smi --query-gpu=clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu --format=csv",
        "nvcc": "nvcc --version",
        "libraries": "ldconfig -p | grep -E 'libcuda|cublas|curand|cudnn'",
        "library folders": "echo $CUDA_LIB_DIR; ls /usr/local/nvidia/lib64 /usr/local/cuda/lib64",
        "packages": f"{sys.executable} -c '{PACKAGES}'",
        "programs": "command -v compute-sanitizer ncu nsys cuobjdump xz",
        "processor": "grep -m1 'model name' /proc/cpuinfo; nproc",
        "memory": "free -g | head -2; df -h /tmp | tail -1",
        "system": "uname -a",
    }
    noted = {}
    for name, command in commands.items():
        try:
            made = subprocess.run(command, shell=True, text=True, capture_output=True, timeout=6)
            noted[name] = (made.stdout + made.stderr).strip()
        except subprocess.TimeoutExpired:
            noted[name] = "no answer"
        print(f"-- {name}\n{noted[name]}", flush=True)
        replace(file, json.dumps(noted))
    return 0


def parts_of(options: argparse.Namespace) -> list[Part]:
    settings = Settings(options.program, options.device, options.miniature)
    if options.plan == "first":
        return flight_plan.first(settings)
    known = [part.name for part in flight_plan.first(settings)]
    again = set()
    if options.since:
        before = json.loads(options.since.read_text())["parts"]
        again |= {record["name"] for record in before if record["status"] in ("failed", "crashed", "timed out", "stopped", "running")}
    for pattern in filter(None, options.mended.split(",")):
        matching = set(fnmatch.filter(known, pattern))
        if not matching:
            sys.exit(f"no part is called '{pattern}'; there are {', '.join(known)}")
        again |= matching
    return flight_plan.second(settings, again)


def stop(number, _frame) -> None:
    for other in STOPPING:
        signal.signal(other, signal.SIG_IGN)  # once is enough: the results are written now
    raise Stopped(signal.Signals(number).name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", help="diffuser-api, built for cards")
    parser.add_argument("--plan", choices=("first", "second"), default="first")
    parser.add_argument("--since", type=pathlib.Path, help="results of the first call: what failed there is run again")
    parser.add_argument("--mended", default="", help="parts to run again in any case; patterns, with commas between")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--budget", type=float, help="seconds for all parts")
    parser.add_argument("--only", default="", help="of the plan only these parts; patterns, with commas between")
    parser.add_argument("--limit", action="append", default=[], metavar="PATTERN=SECONDS", help="other limits for some parts")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--miniature", action="store_true", help="tiny models: to rehearse without a card")
    parser.add_argument("--facts", type=pathlib.Path, metavar="FILE", help="note only what the machine is")
    options = parser.parse_args()
    if options.facts:
        return facts(options.facts)
    if not options.program:
        parser.error("which program?")
    parts = parts_of(options)
    if options.only:
        patterns = options.only.split(",")
        parts = [part for part in parts if any(fnmatch.fnmatch(part.name, pattern) for pattern in patterns)]
    for limit in options.limit:
        pattern, seconds = limit.rsplit("=", 1)
        parts = [
            dataclasses.replace(part, limit_s=float(seconds)) if fnmatch.fnmatch(part.name, pattern) else part
            for part in parts
        ]
    for number in STOPPING:
        signal.signal(number, stop)
    return Flight(parts, options.out, options.budget or BUDGETS_S[options.plan], options.plan).fly()


if __name__ == "__main__":
    sys.exit(main())
