#!/usr/bin/env python3
"""Asks a running server for edits and compares them with the right answers.

    python evaluate.py [--url http://127.0.0.1:8000/v1] [--count 8] [--size WxH] [--out SHEET.png] [--json RESULTS.json] [--later]

Pictures and phrases are held out: a seed of its own for procedural pictures and
scenes, photographs that come with scikit-image, phrases of
`instructions.HELD_OUT` (or `LATER`). An edit is a success if its PSNR to the right answer is
at least 3 dB above that of the unedited picture, and its mean colour is nearer to
that of the right answer (or within 3 levels). Where nothing should change, it is
one if the picture stays within 30 dB.

With --size every edit is asked for in that size. The server then edits the middle of
the picture in these proportions: so are the picture and the right answer cut, and all
three are compared at about SIDE x SIDE pixels.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import pathlib
import time
import urllib.request
import uuid

import numpy as np
import skimage
from PIL import Image, ImageDraw

import instructions
import pictures

SIDE = 128
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg", "retina.jpg")
MARGIN_DB, NEAR_LEVELS, UNCHANGED_DB = 3.0, 3.0, 30.0


# Of the photographs in turn: wide, tall, smaller and larger ones, too.
SIZES = ((SIDE, SIDE), (148, 112), (112, 148), (100, 100), (160, 90), (160, 160), (SIDE, SIDE))


def photographs(sizes: tuple[tuple[int, int], ...] = ((SIDE, SIDE),) * len(PHOTOGRAPHS)) -> list[np.ndarray]:
    """Photographs bundled with scikit-image, cut and scaled to these widths and heights, as bytes."""
    folder, pictures_made = pathlib.Path(skimage.__file__).parent / "data", []
    for name, (width, height) in zip(PHOTOGRAPHS, sizes):
        image = Image.open(folder / name).convert("RGB")
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
        box = (left, top, left + scale * width, top + scale * height)
        pictures_made.append(np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box)))
    return pictures_made


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def cut(picture: np.ndarray, size: str) -> np.ndarray:
    """The middle of a picture in the proportions of `size`, at about SIDE x SIDE pixels."""
    width, height = map(int, size.split("x"))
    scale = min(picture.shape[1] / width, picture.shape[0] / height)
    wide, high = round(width * scale), round(height * scale)
    left, top = (picture.shape[1] - wide) // 2, (picture.shape[0] - high) // 2
    box = (left, top, left + wide, top + high)
    side = SIDE / (width * height) ** 0.5
    return np.asarray(Image.fromarray(picture).resize((round(width * side), round(height * side)), Image.Resampling.LANCZOS, box))


def ask(url: str, picture: np.ndarray, prompt: str, seed: int, size: str = "auto") -> tuple[np.ndarray, float]:
    """One edit over HTTP: the picture, and the seconds it took."""
    boundary = uuid.uuid4().hex
    body = io.BytesIO()
    for name, value in (("prompt", prompt), ("seed", str(seed)), ("size", size)):
        body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="picture.png"\r\n'.encode())
    body.write(b"Content-Type: image/png\r\n\r\n" + png(picture) + f"\r\n--{boundary}--\r\n".encode())
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{url}/images/edits", body.getvalue(), headers)
    started = time.time()
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    seconds = time.time() - started
    decoded = base64.b64decode(answer["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(decoded)).convert("RGB")), seconds


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(float) - b.astype(float)) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def succeeded(before: np.ndarray, edit: np.ndarray, wanted: np.ndarray, changes: bool) -> bool:
    if not changes:
        return psnr(edit, before) >= UNCHANGED_DB
    colours = [p.reshape(-1, 3).mean(0) for p in (before, edit, wanted)]
    apart, nearest = np.abs(colours[1] - colours[2]).mean(), np.abs(colours[0] - colours[2]).mean()
    return psnr(edit, wanted) >= psnr(before, wanted) + MARGIN_DB and (apart < nearest or apart <= NEAR_LEVELS)


def to_bytes(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


HELD_OUT_PAIR = ", held-out pair"  # ends the name of a row
PAIRED = (*instructions.SHAPE_TASKS, *instructions.DRAWN)
ROWS = (*instructions.TASKS, *(task + HELD_OUT_PAIR for task in PAIRED), "unchanged")
HELD_OUT = {**instructions.HELD_OUT, "unchanged": instructions.HELD_OUT_UNCHANGED}


def cases(row: str, count: int, photos: list[np.ndarray], seed: int, held_out: dict[str, list[str]] = HELD_OUT):
    """(prompt, before, wanted, kind of picture) of edits by held-out phrases."""
    rng, task = np.random.default_rng([seed, ROWS.index(row)]), row.removesuffix(HELD_OUT_PAIR)
    for index in range(count):
        if task in instructions.SCENE_TASKS:
            phrases = {task: [held_out[task][index % len(held_out[task])]]}
            instruction, before, after = instructions.scene_edit(rng, task, phrases, held_out_pair=row != task)
            yield instruction.text, to_bytes(before.render(SIDE)), to_bytes(after.render(SIDE)), "scene"
            continue
        photograph = index % 2 == 0
        before = photos[(index // 2) % len(photos)] if photograph else to_bytes(pictures.photo_like(rng, SIDE))
        phrases = held_out[task]
        wanted = instructions.target(None if task == "unchanged" else task, before.astype(np.float32) / 255)
        yield phrases[index % len(phrases)], before, to_bytes(wanted), "photograph" if photograph else "procedural"


def sheet(rows: list[tuple[str, list[np.ndarray]]], file: pathlib.Path) -> None:
    """Three columns of: words, before, edit, wanted."""
    words, gap, columns = 150, 4, 2
    width = words + 3 * (SIDE + gap)
    height = (len(rows) + columns - 1) // columns * (SIDE + gap)
    image = Image.new("RGB", (width * columns, height), "white")
    draw = ImageDraw.Draw(image)
    for index, (text, row) in enumerate(rows):
        left, top = index % columns * width, index // columns * (SIDE + gap)
        lines, line = [], ""
        for word in text.split():
            if len(line) + len(word) > 22:
                lines, line = [*lines, line], ""
            line = f"{line} {word}".strip()
        draw.multiline_text((left + 4, top + 8), "\n".join([*lines, line]), fill="black")
        for place, picture in enumerate(row):
            shown = Image.fromarray(picture)
            shown.thumbnail((SIDE, SIDE))
            image.paste(shown, (left + words + place * (SIDE + gap), top))
    image.save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--count", type=int, default=8, help="edits of each instruction")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--size", default="auto", help="the size to ask for, such as 1024x1024")
    parser.add_argument("--later", action="store_true", help="ask by the phrases of `instructions.LATER`")
    parser.add_argument("--out", type=pathlib.Path, help="contact sheet: before, edit, wanted")
    parser.add_argument("--json", type=pathlib.Path, help="the table as a file")
    options = parser.parse_args()
    photos, table, rows, times = photographs(SIZES), {}, [], []
    held_out = instructions.LATER if options.later else HELD_OUT
    print("| instruction | edits | success | unedited dB | edit dB |\n|---|---|---|---|---|")
    for task in ROWS:
        results = []
        for index, (prompt, before, wanted, kind) in enumerate(cases(task, options.count, photos, options.seed, held_out)):
            edit, seconds = ask(options.url, before, prompt, index, options.size)
            if options.size != "auto":
                before, edit, wanted = (cut(picture, options.size) for picture in (before, edit, wanted))
            times.append(seconds)
            success = succeeded(before, edit, wanted, task != "unchanged")
            results.append((success, min(60, psnr(before, wanted)), psnr(edit, wanted), kind, prompt))
            if index == len(rows) % 2:
                rows.append((prompt, [before, edit, wanted]))
        share = 100 * np.mean([r[0] for r in results])
        unedited, edited = np.mean([r[1] for r in results]), np.mean([r[2] for r in results])
        shown = "-" if task == "unchanged" else f"{unedited:.1f}"
        print(f"| {task} | {len(results)} | {share:.0f} % | {shown} | {edited:.1f} |", flush=True)
        table[task] = dict(success=share, unedited=unedited, edit=edited, failed=[r[4] for r in results if not r[0]])
    times = np.sort(times)
    print(f"\nseconds an edit, request to reply: median {np.median(times):.2f}, longest {times[-1]:.2f}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))
    if options.out:
        sheet(rows, options.out)


if __name__ == "__main__":
    main()
