"""Writes the small requests and pictures that fuzzing starts from, into the folder seeds beside it.

python make_request_seeds.py  (needs Pillow; what it writes is kept in the repository)
"""

import io
import json
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageCms

SEEDS = Path(__file__).with_name("seeds")
RECIPE = json.dumps({"diffuser_api": "0.1.0", "endpoint": "edits", "model": "demo", "picture": "8x8", "parameters": {"seed": 7}})
KEYWORD = b"diffuser-api"


def write(target: str, name: str, content: bytes):
    (SEEDS / target).mkdir(parents=True, exist_ok=True)
    (SEEDS / target / name).write_bytes(content)


def picture(mode="RGB", size=(8, 6)) -> Image.Image:
    whole = Image.merge("RGBA", [Image.linear_gradient("L").resize(size).rotate(90 * turn) for turn in range(4)])
    return whole.convert("RGB").convert(mode) if mode != "RGBA" else whole


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures() -> dict:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "rgb.png": saved(picture(), "PNG"), "rgba.png": saved(picture("RGBA"), "PNG"),
        "grey.png": saved(picture("L"), "PNG"), "palette.png": saved(picture("P"), "PNG", transparency=0),
        "bits.png": saved(picture("1"), "PNG"), "sixteen.png": saved(picture("L").convert("I;16"), "PNG"),
        "profile.png": saved(picture(), "PNG", icc_profile=profile),
        "rgb.jpg": saved(picture(), "JPEG"), "grey.jpg": saved(picture("L"), "JPEG"),
        "cmyk.jpg": saved(picture("CMYK"), "JPEG"), "turned.jpg": saved(picture(), "JPEG", exif=turned),
        "progressive.jpg": saved(picture(), "JPEG", progressive=True),
        "lossy.webp": saved(picture(), "WEBP"), "lossless.webp": saved(picture("RGBA"), "WEBP", lossless=True),
        "one.gif": saved(picture("P"), "GIF"),
        "two.gif": saved(picture("P"), "GIF", save_all=True, append_images=[picture("P").rotate(180)]),
        "rgb.bmp": saved(picture(), "BMP"), "palette.bmp": saved(picture("P"), "BMP"),
        "rgb.tif": saved(picture(), "TIFF"), "lzw.tif": saved(picture(), "TIFF", compression="tiff_lzw"),
        "deflate.tif": saved(picture("L"), "TIFF", compression="tiff_deflate"),
        "cmyk.tif": saved(picture("CMYK"), "TIFF"), "small.ico": saved(picture("RGBA", (16, 16)), "ICO"),
        "page": b"<!DOCTYPE html><html></html>", "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    }


def with_recipe(png: bytes) -> bytes:
    """As `imaging/provenance.rs` writes it: behind the header."""
    data = KEYWORD + b"\0\0\0\0\0" + RECIPE.encode()
    chunk = struct.pack(">I", len(data)) + b"iTXt" + data + struct.pack(">I", zlib.crc32(b"iTXt" + data))
    behind_header = 8 + 12 + 13
    return png[:behind_header] + chunk + png[behind_header:]


def provenance():
    described = Image.Exif()
    described[0x010E] = RECIPE
    described[0x0131] = "Diffuser API"
    write("provenance_text", "plain.png", saved(picture(), "PNG"))
    write("provenance_text", "recipe.png", with_recipe(saved(picture(), "PNG")))
    # A segment every four bytes: a list of them would be far larger than the file.
    write("provenance_text", "segments.jpeg", b"\xff\xd8" + b"\xff\xe1\0\x02" * 1500 + b"\xff\xd9")
    for kind in ("JPEG", "WEBP"):
        write("provenance_text", f"plain.{kind.lower()}", saved(picture(), kind))
        write("provenance_text", f"recipe.{kind.lower()}", saved(picture(), kind, exif=described))


def part(head: str, content: bytes) -> bytes:
    return f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"


def forms():
    """The first byte says in pieces of how many bytes the rest arrives."""
    words, file = part('name="prompt"', b"make it sepia"), part('name="image"; filename="a.png"', b"\x89PNG\r\n--b")
    typed = b'--b\r\nContent-Disposition: form-data; name="image[]"; filename="\xc3\xa4.png"\r\nContent-Type: image/png\r\n\r\nx\r\n'
    empty = part('name="mask"; filename=""', b"")
    for name, form in {
        "words": words + b"--b--\r\n", "file": words + file + b"--b--\r\n", "files": words + typed + typed + empty + b"--b--",
        "cut": (words + file)[:-9], "preamble": b"before\r\n" + words + b"--b--\r\nbehind", "none": b"--b--\r\n",
        "star": part("name*=utf-8''a%20b; filename*=utf-8''c", b"") + b"--b--\r\n", "fields": words * 40 + b"--b--\r\n",
    }.items():
        for size in (1, 7, 255):
            write("multipart_form", f"{name}-{size}", bytes([size]) + form)


def bodies():
    for name, body in {
        "edit": '{"model":"demo","prompt":"make it sepia","images":[{"image_url":"data:image/png;base64,aGk="}],"seed":7,"n":2}',
        "numbers": '{"a":-0.0,"b":1e300,"c":18446744073709551615,"d":18446744073709551616,"e":-9223372036854775808,"f":[1,2.5]}',
        "twice": '{"a":1,"b":null,"a":{"c":[]}}', "escapes": '{"\\u00e4":"\\ud83d\\ude00\\n","b":"\\"\\\\"}',
        "deep": '{"a":' + "[" * 100 + "]" * 100 + "}", "names": "{" + ",".join(f'"{key}":1' for key in range(300)) + "}",
        "cut": '{"a":[1,', "list": "[]", "behind": '{"a":1}x', "surrogate": '{"a":"\\ud800"}',
    }.items():
        write("json_body", name, body.encode())


def data_urls():
    for name, url in {
        "base64": "data:image/png;base64,+/9oaQ==", "unpadded": "DATA:;BASE64,+/9oaQ", "for-urls": "data:;base64,-_9oaQ",
        "percent": "data:,%fb%ffhi%", "escaped": "data:image/png;base64,%2B%2f9oaQ%3D%3D", "broken": "data:;base64,a@",
        "lines": " data:image/png;charset=utf-8;base64, +/9o\r\n aQ==\r\n", "no-comma": "data:image/png", "http": "http://x/",
    }.items():
        write("data_url", name, url.encode())


def main():
    for name, file in pictures().items():
        write("picture_decode", name, file)
    provenance()
    forms()
    bodies()
    data_urls()


if __name__ == "__main__":
    main()
