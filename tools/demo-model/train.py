#!/usr/bin/env python3
"""Makes the demo model, from nothing but random numbers.

    python train.py --work WORK --out ../../assets/demo [--eye-minutes 16] [--text-minutes 110] [--device cuda]

Stages: pictures, autoencoder, eyes, text encoder (only these two are trained for
long), checkpoint. Each is skipped if its file is in WORK; eyes and text encoder go on
from where they stopped until their minutes are spent in all. See README.md.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import torch

import autoencoder
import export
import pictures
import text_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for what is in the making")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder that the checkpoint replaces")
    parser.add_argument("--eye-minutes", type=float, default=16.0, help="time budget of the vision tower alone")
    parser.add_argument("--text-minutes", type=float, default=110.0, help="time budget of the text encoder, with its eyes")
    parser.add_argument("--codec-minutes", type=float, default=5.0, help="time budget of the autoencoder")
    parser.add_argument("--pictures", type=int, default=3000, help="procedural pictures to make")
    parser.add_argument("--device", default="cpu", help="where eyes and text encoder are trained")
    parser.add_argument("--threads", type=int, default=1, help="more than one only helps on an idle machine")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    pool, codec = options.work / "pool.npy", options.work / "codec.pt"
    if not pool.exists():
        np.save(pool, pictures.pool(100 + options.seed, options.pictures, 128))
    if not codec.exists():
        fitted = autoencoder.fit(np.load(pool, mmap_mode="r"), options.codec_minutes, seed=options.seed)
        torch.save(fitted.state_dict(), codec)
    text_encoder.train(options.work, options.text_minutes, options.eye_minutes, options.device, options.seed)
    export.export(options.work, options.out)


if __name__ == "__main__":
    main()
