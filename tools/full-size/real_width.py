#!/usr/bin/env python3
"""Holds pictures of a checkpoint at the published widths against diffusers', in every way that weights can lie.

    python3 tools/full-size/real_width.py target/release/diffuser-api /tmp/rw
    python3 tools/full-size/real_width.py target/release/diffuser-api /tmp/rw --files q8_0=/tmp/q8_0.gguf

`/tmp/rw` has `ckpt/` and `golden/`, as tests/data/make_fixtures.py lays them out, of a checkpoint whose layers are two
and as wide as the published ones (heads of 128, 3584 in the text encoder, 96 in the VAE): make it with tinyqwen.py's
`build_checkpoint` and `pick_config` returning those widths. `--files` names transformers in other formats, as
`diffuser-api convert` writes them. Prints, for each way, the largest and the mean difference from the golden in levels, the
PSNR, seconds of the second picture and the memory taken. Needs numpy, Pillow and safetensors; Linux only.
"""

import argparse
import base64
import hashlib
import io
import json
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy
import run
from PIL import Image
from safetensors.numpy import load_file

GIB = run.GIB
WAYS = [
    ("float32", "resident"),
    ("float32", "stream"),
    ("bfloat16", "resident"),
    ("bfloat16", "stream"),
    ("float16", "resident"),
    ("fp8-weights", "resident"),
    ("q8_0", "resident"),
]


def multipart(fields, files):
    boundary = "a-boundary-that-is-in-no-picture"
    head = f"--{boundary}\r\nContent-Disposition: form-data; name="
    body = b"".join(f'{head}"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items())
    for name, data in files:
        body += f'{head}"{name}"; filename="a.png"\r\n\r\n'.encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def asked(case, golden):
    """The form of a recorded call."""
    call = case["call"]
    names = ["prompt", "negative_prompt", "num_inference_steps", "true_cfg_scale"]
    fields = {name: call[name] for name in names if call.get(name) is not None}
    fields["seed"] = case["generator_seed"]
    sides = [call.get("width"), call.get("height")]
    fields["size"] = f"{sides[0] // 16 * 16}x{sides[1] // 16 * 16}" if all(sides) else "reference"
    pictures = [("image", (golden / file).read_bytes()) for file in case["inputs"]["image"]]
    return multipart(fields, pictures)


def picture(port, body, kind):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/images/edits", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=3600) as reply:
        data = base64.b64decode(json.load(reply)["data"][0]["b64_json"])
    return numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def measured(args, settings, form):
    """Two pictures, the seconds of the second, and the memory of both."""
    args.set = [f"{name}={value}" for name, value in settings.items()]
    with tempfile.TemporaryFile("w+") as log, run.serving(args, log) as (port, most):
        picture(port, *form)
        started = time.monotonic()
        made = picture(port, *form)
        return made, time.monotonic() - started, most


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", default="edit_cfg")
    parser.add_argument("--files", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--ways", nargs="*", help="such as float32:stream")
    args = parser.parse_args()
    golden = args.folder / "golden"
    case = json.loads((golden / f"{args.case}.json").read_text())
    theirs = load_file(golden / f"{args.case}.safetensors")["out.image"].astype(int)
    form = asked(case, golden)
    args.checkpoint, args.data_limit = str(args.folder / "ckpt" / case["checkpoint"].split("/")[-1]), None
    args.area = case["areas"]["1048576"]
    ways = [tuple(way.split(":")) for way in args.ways] if args.ways else WAYS
    runs = [(f"{dtype}, {memory}", dtype, {"DIFFUSER_MEMORY": memory}) for dtype, memory in ways]
    for name, file in (entry.split("=", 1) for entry in args.files):
        files = {"DIFFUSER_FILES_TRANSFORMER": file, "DIFFUSER_FILES_BASE": args.checkpoint}
        runs += [(f"{name}, {memory}", "auto", {**files, "DIFFUSER_MEMORY": memory}) for memory in ("resident", "stream")]
    print("| way | largest | mean | dB | seconds | anonymous GiB | mapped GiB | picture |\n|---|---|---|---|---|---|---|---|")
    for name, args.dtype, settings in runs:
        made, seconds, most = measured(args, {"DIFFUSER_CACHE_BYTES": "0", **settings}, form)
        far = numpy.abs(made.reshape(theirs.shape) - theirs)
        psnr = 20 * numpy.log10(255) - 10 * numpy.log10(max((far**2).mean(), 1e-9))
        digest = hashlib.sha256(made.astype("uint8").tobytes()).hexdigest()[:8]
        memory = f"{most['RssAnon'] / GIB:.2f} | {most['RssFile'] / GIB:.2f}"
        print(f"| {name} | {far.max()} | {far.mean():.4f} | {psnr:.1f} | {seconds:.1f} | {memory} | {digest} |", flush=True)


if __name__ == "__main__":
    main()
