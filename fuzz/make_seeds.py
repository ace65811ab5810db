"""Writes the files that fuzzing starts from: small ones, whole, of each kind.

python make_seeds.py CORPUS  (needs the packages gguf, numpy and safetensors of PyPI)
"""

import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save


def gguf_seed(path: Path, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, "qwen_image")
    writer.add_quantization_version(2)
    writer.add_float32("scale", 0.5)
    writer.add_bool("flag", True)
    writer.add_array("comfy.gguf.orig_shape.a", [1, 2])
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_custom_alignment(64)
    elements, block = gguf.GGML_QUANT_SIZES[kind]
    rows = np.zeros((2, block), dtype=np.uint8)
    writer.add_tensor("a.weight", rows, raw_dtype=kind)
    writer.add_tensor("a.bias", np.zeros(3, dtype=np.float32))
    writer.add_tensor("marker", np.zeros(0, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    corpus = Path(sys.argv[1])
    headers = corpus / "gguf_header"
    headers.mkdir(parents=True, exist_ok=True)
    for name in ["Q4_0", "Q8_0", "Q4_K", "IQ4_XS", "BF16", "IQ2_XXS"]:
        gguf_seed(headers / f"{name}.gguf", gguf.GGMLQuantizationType[name])
    plain = corpus / "safetensors_header"
    plain.mkdir(parents=True, exist_ok=True)
    tensors = {
        "a.weight": np.zeros((2, 3), dtype=np.float16),
        "scaled_fp8": np.zeros(0, dtype=np.float32),
        "scale": np.array(1, dtype=np.float32),
    }
    whole = save(tensors, metadata={"format": "pt"})
    (plain / "whole").write_bytes(whole)
    (plain / "cut").write_bytes(whole[:-4])
    (plain / "pointer").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    (plain / "page").write_bytes(b"<!DOCTYPE html><html></html>")
    (plain / "gguf").write_bytes(b"GGUF\3\0\0\0")


if __name__ == "__main__":
    main()
