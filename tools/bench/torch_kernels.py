#!/usr/bin/env python3
"""Torch's side of `cargo bench --bench kernels -- --torch python`: reads a kernel a line, answers with milliseconds.

    echo "product float32 2458 3072 12288" | python tools/bench/torch_kernels.py 2 5 1.5   # threads, runs at least, seconds at least

The lines are those of benches/kernels.rs. "q8_0" is torch's layer of 8-bit integers whose inputs are rounded as they
come (`quantized.dynamic.Linear`): a scale for the whole matrix, not for 32 numbers, so it has less to do.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as functional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def product(format: str, tokens: int, inputs: int, outputs: int):
    if format == "q8_0":
        layer = torch.ao.nn.quantized.dynamic.Linear(inputs, outputs)
        x = torch.randn(tokens, inputs)
        return lambda: layer(x)
    x, weight = (torch.randn(rows, inputs).to(DTYPES[format]) for rows in (tokens, outputs))
    return lambda: functional.linear(x, weight)


def attention(format: str, heads: int, key_heads: int, tokens: int, size: int, mask: str):
    q, k, v = (torch.randn(1, count, tokens, size).to(DTYPES[format]) for count in (heads, key_heads, key_heads))
    return lambda: functional.scaled_dot_product_attention(
        q, k, v, is_causal=mask == "causal", enable_gqa=heads != key_heads
    )


def convolution(format: str, inputs: int, outputs: int, side: int, kernel: int, stride: int):
    layer = torch.nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
    layer = layer.to(DTYPES[format])
    beyond = 1 if stride > 1 else 0
    x = torch.randn(1, inputs, side + beyond, side + beyond).to(DTYPES[format])
    return lambda: layer(x)


def main() -> None:
    threads, fewest_runs, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(threads)
    kinds = dict(product=product, attention=attention, convolution=convolution)
    for line in sys.stdin:
        kind, format, *rest = line.split()
        with torch.inference_mode():
            kernel = kinds[kind](format, *(int(word) if word.isdigit() else word for word in rest))
            best, runs, begun = float("inf"), 0, time.perf_counter()
            while runs < fewest_runs or time.perf_counter() - begun < seconds:
                start = time.perf_counter()
                kernel()
                best, runs = min(best, 1000 * (time.perf_counter() - start)), runs + 1
        print(f"{best:.3f}", flush=True)


if __name__ == "__main__":
    main()
