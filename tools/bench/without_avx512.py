#!/usr/bin/env python3
"""Makes a program that finds no AVX-512 on a processor that has it, to measure what others get.

    python tools/bench/without_avx512.py target/release/diffuser-api /tmp/plain
    python tools/bench/diffusers_bench.py --binary /tmp/plain/diffuser-api …

Programs ask the processor what it can do by the instruction CPUID. In a copy of the program each is replaced by an
undefined instruction of the same length; a small library, which the copy's wrapper loads first, catches these,
asks in the program's place, and answers without the bits of AVX-512 (and of AVX-VNNI, which came after it). Everything
else is the same program to the byte. Torch is told the same by the variables that its libraries read; the wrapper's
folder has them in `environment.sh`. Linux on x86-64, with gcc and objdump.
"""

import pathlib
import re
import shlex
import subprocess
import sys

LIBRARY = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

/* Leaf 7, subleaf 0 and 1: the bits of AVX-512 by register (Intel's manual, volume 2A, CPUID). */
static const unsigned EBX_7 = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31;
static const unsigned ECX_7 = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
static const unsigned EDX_7 = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;
static const unsigned EAX_7_1 = 1u << 4 | 1u << 5;

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)r[REG_RIP];
    unsigned leaf = (unsigned)r[REG_RAX], subleaf = (unsigned)r[REG_RCX], a, b, c, d;
    if (at[0] != 0x0f || at[1] != 0x0b) {
        signal(number, SIG_DFL);
        return;
    }
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0) {
        b &= ~EBX_7;
        c &= ~ECX_7;
        d &= ~EDX_7;
    }
    if (leaf == 7 && subleaf == 1)
        a &= ~EAX_7_1;
    r[REG_RAX] = a;
    r[REG_RBX] = b;
    r[REG_RCX] = c;
    r[REG_RDX] = d;
    r[REG_RIP] += 2;
    (void)info;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, 0);
}
"""

ENVIRONMENT = """\
# For torch, so that both sides have the same: ATen's own loops, oneDNN's, MKL's.
export ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
"""


def places(program: pathlib.Path) -> list[int]:
    """Addresses of the instruction, by disassembly: the same two bytes also occur inside others."""
    with subprocess.Popen(["objdump", "-d", "--no-show-raw-insn", program], stdout=subprocess.PIPE, text=True) as run:
        return [int(line.split(":")[0], 16) for line in run.stdout if re.search(r"\tcpuid\s*$", line)]


def sections(program: pathlib.Path) -> list[tuple[int, int, int]]:
    """(address, size, offset in the file) of each section with code."""
    lines = subprocess.run(["objdump", "-h", program], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [line.split() for line, flags in zip(lines, lines[1:]) if "CODE" in flags]
    return [(int(row[3], 16), int(row[2], 16), int(row[5], 16)) for row in rows]


def main() -> None:
    program, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    code, found, data = sections(program), places(program), bytearray(program.read_bytes())
    for address in found:
        offset = next(address - start + at for start, size, at in code if start <= address < start + size)
        assert data[offset:offset + 2] == b"\x0f\xa2", hex(address)
        data[offset:offset + 2] = b"\x0f\x0b"
    copy, library, wrapper = folder / f"{program.name}.patched", folder / "cpuid.so", folder / program.name
    copy.write_bytes(data)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=LIBRARY, text=True, check=True)
    preload, name = shlex.quote(str(library.resolve())), shlex.quote(str(copy.resolve()))
    wrapper.write_text(f'#!/bin/sh\nLD_PRELOAD={preload} exec {name} "$@"\n')
    (folder / "environment.sh").write_text(ENVIRONMENT)
    for file in (copy, wrapper):
        file.chmod(0o755)
    print(f"{len(found)} places; {wrapper} finds no AVX-512")


if __name__ == "__main__":
    main()
