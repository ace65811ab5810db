"""Random GGML blocks: valid bytes in which every bit field takes part, with scales that give weights a wished spread.

Only decoding is tested, so nothing has to be quantised: the quants are random bits and the scales are set afterwards.
The values are those of the `gguf` package's own `dequantize`.
"""
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

PLAIN = ["F32", "F16", "BF16"]
SIMPLE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
SUPER = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
TYPES = PLAIN + SIMPLE + SUPER[:5] + ["IQ4_NL", "IQ4_XS"]

# Where a block's f16 scale is, and its f16 offset or minimum where it has one, with the ratio of the two at which the
# values' mean is zero (layouts: ggml-common.h).
SCALES = {"Q4_0": (0,), "Q4_1": (0, 2, -7.5), "Q5_0": (0,), "Q5_1": (0, 2, -15.5), "Q8_0": (0,),
          "Q2_K": (80, 82, 1.5), "Q3_K": (108,), "Q4_K": (0, 2, 7.5), "Q5_K": (0, 2, 15.5), "Q6_K": (208,),
          "IQ4_NL": (0,), "IQ4_XS": (0,)}


def put_f16(blocks, at, values):
    blocks[:, at:at + 2] = np.asarray(values, np.float16).reshape(-1, 1).view(np.uint8)


def set_scales(blocks, name, scale, ratio_jitter):
    at = SCALES[name]
    put_f16(blocks, at[0], scale)
    if len(at) == 3:
        put_f16(blocks, at[1], scale * at[2] * ratio_jitter)


def random_blocks(name, rows, columns, deviation, rng):
    """Rows of blocks as U8 whose values' standard deviation is about `deviation`, a fifth of the scales negative."""
    elements, size = GGML_QUANT_SIZES[Type[name]]
    count = rows * columns // elements
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    scale = rng.uniform(0.6, 1.4, count) * np.where(rng.random(count) < 0.2, -1, 1)
    jitter = rng.uniform(0.8, 1.2, count)
    set_scales(blocks, name, scale, jitter)
    factor = deviation / dequantize(blocks.reshape(rows, -1), Type[name]).std()
    set_scales(blocks, name, scale * factor, jitter)
    return blocks.reshape(rows, -1)


def block_cases(seed=3, rows=4, columns=512):
    """`<TYPE>.bytes` and `<TYPE>.values` of each type; in the last row the first scale is zero and the last is tiny."""
    rng = np.random.default_rng(seed)
    cases = {}
    for name in TYPES:
        if name in PLAIN:
            data = quantize(rng.normal(0, 0.05, (rows, columns)).astype(np.float32), Type[name])
            data = data.view(np.uint8).reshape(rows, -1)
        else:
            data = random_blocks(name, rows, columns, 0.05, rng)
            size = GGML_QUANT_SIZES[Type[name]][1]
            last = data[-1].reshape(-1, size)
            put_f16(last[:1], SCALES[name][0], 0.0)
            put_f16(last[-1:], SCALES[name][0], 2.0 ** -22)      # below the smallest normal f16
        cases[f"{name}.bytes"] = np.ascontiguousarray(data)
        cases[f"{name}.values"] = np.ascontiguousarray(dequantize(data, Type[name]).astype(np.float32))
    return cases
