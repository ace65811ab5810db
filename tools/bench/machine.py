"""What a measurement on a CPU has to say of the machine: its name, its load, a process's memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib

# What products of matrices are made of, where a CPU has it.
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16")


def cpu() -> dict:
    """The first processor's name, numbers and those of FLAGS that it has."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = fields.get("flags", fields.get("Features", "")).split()
    return dict(
        name=fields.get("model name", "unknown"), family=fields.get("cpu family"), model=fields.get("model"),
        cores=os.cpu_count(), flags=[flag for flag in FLAGS if flag in known],
    )  # fmt: skip


def sentence(facts: dict) -> str:
    missing = [flag for flag in FLAGS if flag not in facts["flags"]]
    return (f"{facts['cores']} cores of {facts['name']} (family {facts['family']}, model {facts['model']}; has "
            f"{' '.join(facts['flags']) or 'none'}; lacks {' '.join(missing) or 'none'})")


def load() -> float:
    """How many programs have wanted a core in the last minute."""
    return os.getloadavg()[0]


def memory(name: str) -> int | None:
    """Bytes of this process that Linux calls `name`: VmRSS now, VmHWM at most."""
    path = pathlib.Path("/proc/self/status")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def forget_peak() -> bool:
    """Has VmHWM begin anew, without what was freed and is kept; says whether this system can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
