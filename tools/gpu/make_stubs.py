"""Makes libraries to link against that find CUDA when the program runs.

    make_stubs.py CUDARC_SOURCES FOLDER

candle links to CUDA's libraries by name, and a program so linked does not start where
one is missing. The static libraries made here have the same functions; each looks its
library up when it is first called. Where there is none, it returns the error that the
library itself would for a missing card, and the program goes on on the CPU.

The functions are those that the crate cudarc declares. x86-64 and Linux only.
"""

import pathlib
import re
import subprocess
import sys
from typing import NamedTuple


class Library(NamedTuple):
    name: str  # as the linker is told
    file: str  # as the loader is told
    module: str  # of cudarc
    prefix: str  # of its functions
    error: int  # what its functions return where it is missing


LIBRARIES = [
    Library("cuda", "libcuda.so.1", "driver", "cu", 100),  # CUDA_ERROR_NO_DEVICE
    Library("cublas", "libcublas.so.13", "cublas", "cublas", 1),  # NOT_INITIALIZED
    Library("cublasLt", "libcublasLt.so.13", "cublaslt", "cublasLt", 1),
    Library("curand", "libcurand.so.10", "curand", "curand", 203),  # INITIALIZATION_FAILED
    Library("nvrtc", "libnvrtc.so.13", "nvrtc", "nvrtc", 11),  # INTERNAL_ERROR
    Library("cudnn", "libcudnn.so.9", "cudnn", "cudnn", 1001),  # NOT_INITIALIZED
    Library("nccl", "libnccl.so.2", "nccl", "p?nccl", 2),  # ncclSystemError
]

# Functions that return a text, which callers read.
TEXTS = re.compile(r"(GetStatusName|GetStatusString|GetErrorString|GetLastError|GetVersionString)$")

FINDER = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN __attribute__((visibility("hidden")))
HIDDEN void *%(name)s_found[%(count)d];

static const char *const names[] = {%(names)s};
static const unsigned char is_text[] = {%(is_text)s};
static const char *const usual[] = {"/usr/local/nvidia/lib64", "/usr/local/cuda/lib64", "/usr/lib/wsl/lib"};

static long missing(void) { return %(error)d; }
static const char *missing_text(void) { return "%(file)s was not found"; }

static void *open_in(const char *folder, size_t length) {
    char path[4096];
    if (snprintf(path, sizeof(path), "%%.*s/%(file)s", (int)length, folder) >= (int)sizeof(path)) return NULL;
    return dlopen(path, RTLD_NOW | RTLD_GLOBAL);
}

/* CUDA_LIB_DIR, then what the loader knows, then the usual places. */
static void *open_library(void) {
    void *library;
    for (const char *at = getenv("CUDA_LIB_DIR"); at && *at;) {
        size_t length = strcspn(at, ":");
        if (length > 0 && (library = open_in(at, length))) return library;
        at += length + (at[length] == ':');
    }
    if ((library = dlopen("%(file)s", RTLD_NOW | RTLD_GLOBAL))) return library;
    for (size_t i = 0; i < sizeof(usual) / sizeof(*usual); i++)
        if ((library = open_in(usual[i], strlen(usual[i])))) return library;
    return NULL;
}

HIDDEN void *%(name)s_find(unsigned index) {
    static void *library;
    static int tried;
    if (!__atomic_load_n(&tried, __ATOMIC_ACQUIRE)) {
        /* Two threads at once open it twice, which is harmless. */
        library = open_library();
        __atomic_store_n(&tried, 1, __ATOMIC_RELEASE);
    }
    void *function = library ? dlsym(library, names[index]) : NULL;
    if (!function) function = is_text[index] ? (void *)missing_text : (void *)missing;
    __atomic_store_n(&%(name)s_found[index], function, __ATOMIC_RELEASE);
    return function;
}
"""

# One function: to the one found, or to the finder with its number.
STUB = """
.globl {function}
.type {function}, @function
{function}:
    movq {name}_found+{offset}(%rip), %r11
    testq %r11, %r11
    jz 1f
    jmp *%r11
1:  movl ${index}, %r11d
    jmp {name}_first
.size {function}, . - {function}
"""

INTEGER_REGISTERS = ["rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10"]


def first_call(name: str) -> str:
    """Finds the function with all arguments of the call put aside, then jumps there."""
    floats = [f"movups %xmm{i}, {16 * i}(%rsp)" for i in range(8)]
    restored = [f"movups {16 * i}(%rsp), %xmm{i}" for i in range(8)]
    lines = [
        "push %rbp",
        "movq %rsp, %rbp",
        "andq $-16, %rsp",
        *(f"push %{register}" for register in INTEGER_REGISTERS),
        "subq $128, %rsp",
        *floats,
        "movl %r11d, %edi",
        f"call {name}_find",
        "movq %rax, %r11",
        *restored,
        "addq $128, %rsp",
        *(f"pop %{register}" for register in reversed(INTEGER_REGISTERS)),
        "movq %rbp, %rsp",
        "pop %rbp",
        "jmp *%r11",
    ]
    return f"\n{name}_first:\n" + "".join(f"    {line}\n" for line in lines)


def functions_of(library: Library, sources: pathlib.Path) -> list[str]:
    text = (sources / library.module / "sys" / "mod.rs").read_text()
    declared = re.findall(r'extern "C" \{(?:\s*#\[[^]]*\])*\s*fn (\w+)\(', text)
    ours = sorted({name for name in declared if re.match(library.prefix, name)})
    if not ours:
        sys.exit(f"cudarc declares nothing of {library.name} in {text[:40]!r}")
    return ours


def make(library: Library, sources: pathlib.Path, folder: pathlib.Path) -> None:
    functions = functions_of(library, sources)
    finder = FINDER % {
        **library._asdict(),
        "count": len(functions),
        "names": ", ".join(f'"{name}"' for name in functions),
        "is_text": ", ".join("1" if TEXTS.search(name) else "0" for name in functions),
    }
    stubs = [
        STUB.format(function=function, name=library.name, offset=8 * index, index=index)
        for index, function in enumerate(functions)
    ]
    end = '\n.section .note.GNU-stack, "", @progbits\n'
    assembly = "".join([".text\n", *stubs, first_call(library.name), end])

    objects = []
    for stem, language, text in [("finder", "c", finder), ("stubs", "assembler", assembly)]:
        target = folder / f"{library.name}_{stem}.o"
        command = ["cc", "-x", language, "-O2", "-fPIC", "-c", "-o", str(target), "-"]
        subprocess.run(command, input=text, text=True, check=True)
        objects.append(target)
    archive = folder / f"lib{library.name}.a"
    archive.unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", str(archive), *map(str, objects)], check=True)
    for target in objects:
        target.unlink()


def main() -> None:
    sources, folder = map(pathlib.Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        make(library, sources, folder)


if __name__ == "__main__":
    main()
