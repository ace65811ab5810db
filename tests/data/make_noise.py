#!/usr/bin/env python3
"""Writes noise.json: what torch's CPU generator draws, for tests/it/golden_components.rs.

    python make_noise.py > noise.json        (torch 2.11)

Each case draws one list after the other from one generator: fewer than 16 numbers take torch's scalar path,
counts that are no multiple of 16 redraw their tail.
"""
import json

import torch

cases = []
for seed in (0, 1, 24, 4294967295, 4294967296 + 5, 2**63 - 1):
    for counts in ([64], [1, 2, 15], [16, 17, 31, 33], [5, 40, 3], [700]):
        generator = torch.Generator("cpu").manual_seed(seed)
        draws = [torch.randn(count, generator=generator, dtype=torch.float32).tolist() for count in counts]
        # Of long lists the first and the last numbers say enough.
        cases.append({"seed": seed, "counts": counts,
                      "draws": [d if len(d) <= 64 else d[:8] + d[-24:] for d in draws]})
print(json.dumps({"torch": torch.__version__, "cases": cases}))
