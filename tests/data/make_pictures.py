"""Writes pictures.safetensors: small picture files as people send them, and what Pillow
13.0 (Little CMS 2.19) shows of each.

    python make_pictures.py

`NAME.file`: the bytes. `NAME.seen`: (height, width, 3 or 4), RGB or RGBA: turned as the
metadata say, with the file's colour profile converted to sRGB by
`ImageCms.profileToProfile`.
The colour profiles are written here from their specification.
"""

import io
import os
import struct
import zlib

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
WIDTH, HEIGHT = 18, 12
tensors, files = {}, {}

# --- colour profiles (ICC.1:2022; version 2: ICC.1:2001-04) ---------------------------


def s15(*numbers):
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def profile(space, tags, version=2, kind=b"mntr", pcs=b"XYZ "):
    number = b"\x02\x40\0\0" if version == 2 else b"\x04\x40\0\0"
    head = bytearray(b"\0\0\0\0none" + number + kind + space + pcs)
    head += struct.pack(">6H", 2025, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    head += s15(0.9642, 1, 0.8249) + b"\0" * 48
    place, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name.encode() + struct.pack(">II", place + len(data), len(content))
        data += content
    whole = bytes(head) + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


def description(text):
    return b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text.encode() + b"\0" * 79


def gamma(value):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def sampled(function, points=64):
    values = [round(65535 * function(at / (points - 1))) for at in range(points)]
    return b"curv\0\0\0\0" + struct.pack(f">I{points}H", points, *values)


SRGB_CURVE = b"para\0\0\0\0" + struct.pack(">HH", 3, 0)
SRGB_CURVE += s15(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def xyz(*numbers):
    return b"XYZ \0\0\0\0" + s15(*numbers)


def rgb_profile(name, colorants, curve, version=2):
    tags = {"desc": description(name), "wtpt": xyz(0.9642, 1, 0.8249)}
    for letter, colorant in zip("rgb", colorants):
        tags[f"{letter}XYZ"] = xyz(*colorant)
        tags[f"{letter}TRC"] = curve
    return profile(b"RGB ", tags, version)


def lut16(inputs, points, table):
    """`mft2` to 3 outputs: no matrix, straight curves."""
    head = struct.pack(">BBBB", inputs, 3, points, 0) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
    straight = struct.pack(">2H", 0, 65535)
    values = np.clip(np.round(table), 0, 65535).astype(">u2").tobytes()
    curves = struct.pack(">HH", 2, 2) + straight * inputs
    return b"mft2\0\0\0\0" + head + curves + values + straight * 3


def lab16(lightness, a, b):
    """Lab as version 2 of profiles encodes it in 16 bits."""
    return np.stack([lightness * 652.8, (a + 128) * 256, (b + 128) * 256], -1)


def grid(inputs, points):
    axes = np.meshgrid(*[np.linspace(0, 1, points)] * inputs, indexing="ij")
    return [axis.ravel() for axis in axes]


def ink_table(points, black):
    """Something like a press: each ink takes light of its complement; black stays grey."""
    c, m, y, k = grid(4, points)
    light = (1 - 0.45 * c) * (1 - 0.55 * m) * (1 - 0.1 * y) * (1 - k)
    lightness = black + (95 - black) * light ** 0.7
    a = (70 * m - 35 * c) * (1 - k)
    b = (85 * y - 45 * c - 5 * m) * (1 - k)
    return lab16(lightness, a, b)


def scanner_table(points, black):
    r, g, b = grid(3, points)
    light = 0.25 * r + 0.65 * g + 0.1 * b
    return lab16(black + (100 - black) * light ** 0.8, 60 * (r - g), 60 * (g - b))


P3 = [(0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)]
ADOBE = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
SRGB = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)]
PROPHOTO = [(0.7977, 0.288, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)]
PROFILES = {
    "p3": rgb_profile("Display P3", P3, SRGB_CURVE, version=4),
    "adobe": rgb_profile("Adobe RGB (1998)", ADOBE, gamma(2.2)),
    "prophoto": rgb_profile("ProPhoto RGB", PROPHOTO, gamma(1.8)),
    "srgb": rgb_profile("sRGB", SRGB, SRGB_CURVE, version=4),
    "srgb_sampled": rgb_profile(
        "sRGB in points",
        SRGB,
        sampled(lambda x: x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4, 1024),
    ),
    "grey_gamma": profile(
        b"GRAY",
        {"desc": description("Grey 1.8"), "wtpt": xyz(0.9642, 1, 0.8249), "kTRC": gamma(1.8)},
    ),
    "dot_gain": profile(
        b"GRAY",
        {
            "desc": description("Dot gain"),
            "wtpt": xyz(0.9642, 1, 0.8249),
            "kTRC": sampled(lambda x: x**1.5 * (0.8 + 0.2 * x)),
        },
        kind=b"prtr",
    ),
    "press": profile(
        b"CMYK",
        {
            "desc": description("Press"),
            "wtpt": xyz(0.9642, 1, 0.8249),
            "A2B0": lut16(4, 5, ink_table(5, 12)),
        },
        kind=b"prtr",
        pcs=b"Lab ",
    ),
    "scanner": profile(
        b"RGB ",
        {
            "desc": description("Scanner"),
            "wtpt": xyz(0.9642, 1, 0.8249),
            "A2B0": lut16(3, 5, scanner_table(5, 8)),
        },
        kind=b"scnr",
        pcs=b"Lab ",
    ),
    "link": profile(b"RGB ", {"desc": description("A link")}, kind=b"link", pcs=b"RGB "),
}
# --- pictures -------------------------------------------------------------------------

y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
colours = np.stack([x * 14, y * 22, (x + y) * 8], -1).astype(np.uint8)
colours[2:6, 3:9] = (220, 30, 30)
colours[7:11, 10:16] = (20, 40, 230)
greys = (x * 8 + y * 10).astype(np.uint8)
alpha = np.clip(255 - (x - 3) * 30, 0, 255).astype(np.uint8)
rgb, grey = Image.fromarray(colours), Image.fromarray(greys)
rgba = rgb.copy()
rgba.putalpha(Image.fromarray(alpha))
grey_alpha = Image.merge("LA", [grey, Image.fromarray(alpha)])
indexed = rgb.quantize(16)
cmyk = Image.fromarray(np.dstack([colours, (x * 4).astype(np.uint8)]), "CMYK")
smooth = Image.fromarray(np.stack([x * 13, y * 21, 255 - x * 7], -1).astype(np.uint8))
smooth_cmyk = Image.fromarray(
    np.stack([x * 12, y * 16, 200 - x * 7, y * 11], -1).astype(np.uint8), "CMYK"
)


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width, height, depth, colour, rows, interlaced=0):
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def with_chunk(file, kind, content):
    """Behind the header."""
    return file[:33] + chunk(kind, content) + file[33:]


def rows_of(pixels):
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def adam7(pixels):
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    return b"".join(rows_of(pixels[top::down, left::right]) for top, left, down, right in passes)


def exif(orientation):
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation]) + b"\0" * 7


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def in_jpeg(file, *segments):
    return file[:2] + b"".join(segments) + file[2:]


XMP_ATTRIBUTE = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="r"><rdf:Description '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
XMP_ELEMENT = b"<rdf:RDF><tiff:Orientation>3</tiff:Orientation></rdf:RDF>"
XMP_JPEG = b"http://ns.adobe.com/xap/1.0/\0"

deep = colours.astype(np.uint16) * 257 + (x[..., None] * 5).astype(np.uint16)
deep_alpha = np.dstack([deep, alpha.astype(np.uint16) * 257])

files["png_rgb"] = plain_png = saved(rgb, "PNG")
files["png_rgba"] = saved(rgba, "PNG")
files["png_grey"] = saved(grey, "PNG")
files["png_grey_alpha"] = saved(grey_alpha, "PNG")
files["png_bits"] = saved(grey.convert("1"), "PNG")
files["png_indexed"] = saved(indexed, "PNG")
files["png_indexed_transparent"] = saved(indexed, "PNG", transparency=bytes([255, 0, 128, 40]))
files["png_grey_key"] = saved(grey, "PNG", transparency=42)
files["png_rgb_key"] = saved(rgb, "PNG", transparency=(220, 30, 30))
files["png_16_rgb"] = png(WIDTH, HEIGHT, 16, 2, rows_of(deep.astype(">u2")))
files["png_16_rgba"] = png(WIDTH, HEIGHT, 16, 6, rows_of(deep_alpha.astype(">u2")))
files["png_16_grey"] = png(WIDTH, HEIGHT, 16, 0, rows_of((greys.astype(np.uint16) * 257).astype(">u2")))
files["png_interlaced"] = png(WIDTH, HEIGHT, 8, 2, adam7(colours), interlaced=1)
files["png_animated"] = saved(rgb, "PNG", save_all=True, append_images=[smooth])
files["png_without_end"] = plain_png[:-12]
files["png_cut_in_checksum"] = plain_png[:-18]
files["png_then_garbage"] = plain_png + b"\xff\xda garbage" * 9
files["png_gamma"] = with_chunk(plain_png, b"gAMA", struct.pack(">I", 100000))
files["png_chromaticities"] = with_chunk(plain_png, b"cHRM", struct.pack(">8I", *[31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000]))
files["png_cicp"] = with_chunk(plain_png, b"cICP", bytes([12, 13, 0, 1]))
pixel_sum = plain_png.rindex(b"IEND") - 8
files["png_wrong_pixel_checksum"] = plain_png[:pixel_sum] + b"\0\0\0\0" + plain_png[pixel_sum + 4 :]
files["png_exif"] = with_chunk(plain_png, b"eXIf", exif(6)[6:])
files["png_exif_with_prefix"] = with_chunk(plain_png, b"eXIf", exif(8))
files["png_exif_in_text"] = with_chunk(plain_png, b"tEXt", b"Raw profile type exif\0\nexif\n      32\n" + exif(6).hex().encode() + b"\n")
files["png_xmp"] = with_chunk(plain_png, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_ATTRIBUTE)
files["png_xmp_compressed"] = with_chunk(plain_png, b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP_ELEMENT))

jpeg = saved(smooth, "JPEG", quality=95, subsampling=0)
files["jpeg_444"] = jpeg
files["jpeg_420"] = saved(smooth, "JPEG", quality=95, subsampling=2)
files["jpeg_422"] = saved(smooth, "JPEG", quality=95, subsampling=1)
files["jpeg_grey"] = saved(grey, "JPEG", quality=95)
files["jpeg_rgb"] = saved(smooth, "JPEG", quality=95, keep_rgb=True)
files["jpeg_progressive"] = saved(smooth, "JPEG", quality=95, progressive=True)
files["jpeg_restarts"] = saved(smooth, "JPEG", quality=95, restart_marker_blocks=1)
files["jpeg_cmyk"] = saved(smooth_cmyk, "JPEG", quality=95)
adobe = files["jpeg_cmyk"].index(b"Adobe")
files["jpeg_ycck"] = files["jpeg_cmyk"][: adobe + 11] + b"\2" + files["jpeg_cmyk"][adobe + 12 :]
files["jpeg_trailer"] = jpeg + b"\0MotionPhoto_Data\0\0\0\x18ftypmp42" + b"\xff\xda\0\x0c" * 3
files["jpeg_second_picture"] = jpeg + saved(grey, "JPEG", progressive=True)[:-2]
files["jpeg_mpo"] = saved(smooth, "MPO", save_all=True, append_images=[grey.convert("RGB")], quality=95)
files["jpeg_fill_bytes"] = in_jpeg(jpeg, b"\xff\xff\xff" + segment(0xFE, b"note"))
thumbnail = exif(1) + saved(grey, "JPEG") + b"\xff\xda\xff\xd9\xff\xda"
files["jpeg_thumbnail"] = in_jpeg(jpeg, segment(0xE1, thumbnail))
files["jpeg_exif"] = in_jpeg(jpeg, segment(0xE1, exif(6)))
files["jpeg_xmp_attribute"] = in_jpeg(jpeg, segment(0xE1, XMP_JPEG + XMP_ATTRIBUTE))
files["jpeg_xmp_element"] = in_jpeg(jpeg, segment(0xE1, XMP_JPEG + XMP_ELEMENT))
files["jpeg_exif_and_xmp"] = in_jpeg(
    jpeg, segment(0xE1, XMP_JPEG + XMP_ATTRIBUTE), segment(0xE1, exif(8))
)

files["webp_lossy"] = saved(smooth, "WEBP", quality=95)
files["webp_lossy_alpha"] = saved(Image.merge("RGBA", [*smooth.split(), rgba.getchannel("A")]), "WEBP", quality=95)
files["webp_lossless"] = saved(rgba, "WEBP", lossless=True, exact=True)
files["webp_animated"] = saved(rgb, "WEBP", save_all=True, append_images=[smooth], lossless=True)
files["webp_xmp"] = saved(rgb, "WEBP", lossless=True, xmp=XMP_ATTRIBUTE)
files["webp_exif"] = saved(rgb, "WEBP", lossless=True, exif=exif(6))

files["gif"] = saved(indexed, "GIF")
files["gif_transparent"] = saved(indexed, "GIF", transparency=1)
files["gif_animated"] = saved(indexed, "GIF", save_all=True, append_images=[smooth.quantize(8)])
files["gif_interlaced"] = saved(indexed, "GIF", interlace=1)
larger = struct.pack("<HH", WIDTH + 5, HEIGHT + 3)
files["gif_part"] = files["gif_transparent"][:6] + larger + files["gif_transparent"][10:]
files["gif_without_trailer"] = files["gif"][:-1]

files["bmp"] = saved(rgb, "BMP")
files["bmp_alpha"] = saved(rgba, "BMP")
files["bmp_indexed"] = saved(indexed, "BMP")
files["bmp_grey"] = saved(grey, "BMP")
files["bmp_bits"] = saved(grey.convert("1"), "BMP")
odd = rgb.crop((0, 0, 15, 12))
files["bmp_without_padding"] = saved(odd, "BMP")[:-3]

files["tiff"] = saved(rgb, "TIFF")
for compression in ["tiff_lzw", "tiff_adobe_deflate", "packbits"]:
    files[f"tiff_{compression.removeprefix('tiff_')}"] = saved(rgb, "TIFF", compression=compression)
files["tiff_alpha"] = saved(rgba, "TIFF")
files["tiff_premultiplied"] = saved(rgba.convert("RGBa").convert("RGBA"), "TIFF", tiffinfo={338: 1})
files["tiff_no_alpha"] = saved(rgba, "TIFF", tiffinfo={338: 0})
files["tiff_grey"] = saved(grey, "TIFF")
files["tiff_grey_alpha"] = saved(grey_alpha, "TIFF")
files["tiff_bits"] = saved(grey.convert("1"), "TIFF")
files["tiff_fax"] = saved(grey.convert("1"), "TIFF", compression="group4")
files["tiff_white_is_zero"] = saved(grey, "TIFF", tiffinfo={262: 0})
files["tiff_indexed"] = saved(indexed, "TIFF")
files["tiff_16_grey"] = saved(Image.fromarray(greys.astype(np.uint16) * 257), "TIFF")
files["tiff_float"] = saved(Image.fromarray(greys.astype(np.float32) * 1.3 - 20), "TIFF")
files["tiff_16_big_endian"] = saved(Image.fromarray((greys.astype(np.uint16) * 257).astype(">u2")), "TIFF")
files["tiff_jpeg"] = saved(smooth, "TIFF", compression="jpeg", quality=95)
files["tiff_cmyk"] = saved(cmyk, "TIFF")
files["tiff_turned"] = saved(rgb, "TIFF", tiffinfo={274: 6})
files["tiff_xmp"] = saved(rgb, "TIFF", tiffinfo={700: XMP_ATTRIBUTE})

files["ico"] = saved(rgba.resize((16, 16)), "ICO", sizes=[(16, 16)])
files["ico_bmp"] = saved(rgba.resize((16, 16)), "ICO", sizes=[(16, 16)], bitmap_format="bmp")

for name in ["p3", "adobe", "prophoto", "srgb", "srgb_sampled", "scanner"]:
    files[f"icc_png_{name}"] = saved(rgb, "PNG", icc_profile=PROFILES[name])
files["icc_png_alpha"] = saved(rgba, "PNG", icc_profile=PROFILES["p3"])
files["icc_png_indexed"] = saved(indexed, "PNG", icc_profile=PROFILES["p3"])
files["icc_png_grey"] = saved(grey, "PNG", icc_profile=PROFILES["grey_gamma"])
files["icc_png_grey_alpha"] = saved(grey_alpha, "PNG", icc_profile=PROFILES["dot_gain"])
compressed = zlib.compress(PROFILES["p3"])
files["icc_png_16"] = with_chunk(files["png_16_rgb"], b"iCCP", b"P3\0\0" + compressed)
files["icc_jpeg"] = saved(smooth, "JPEG", quality=95, subsampling=0, icc_profile=PROFILES["p3"])
parts = [PROFILES["p3"][at : at + 200] for at in range(0, len(PROFILES["p3"]), 200)]
numbered = [
    segment(0xE2, b"ICC_PROFILE\0" + bytes([number + 1, len(parts)]) + part)
    for number, part in enumerate(parts)
]
files["icc_jpeg_parts"] = in_jpeg(jpeg, *reversed(numbered))
files["icc_jpeg_grey"] = saved(grey, "JPEG", quality=95, icc_profile=PROFILES["dot_gain"])
files["icc_jpeg_cmyk"] = saved(smooth_cmyk, "JPEG", quality=95, icc_profile=PROFILES["press"])
files["icc_webp"] = saved(rgb, "WEBP", lossless=True, icc_profile=PROFILES["p3"])
files["icc_tiff"] = saved(rgb, "TIFF", icc_profile=PROFILES["adobe"])
files["icc_tiff_cmyk"] = saved(smooth_cmyk, "TIFF", icc_profile=PROFILES["press"])

# --- what Pillow shows ----------------------------------------------------------------


def seen(file):
    image = Image.open(io.BytesIO(file))
    image.load()
    icc = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B"):
        # Pillow's own conversion makes white of all that is over 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("P", "1") or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    opacity = image.getchannel("A") if "A" in image.getbands() else None
    if opacity is not None:
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if icc:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        target = ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    image = image.convert("RGB")
    if opacity is not None:
        image.putalpha(opacity)
    return np.asarray(image)


for name, file in files.items():
    tensors[f"{name}.file"] = torch.from_numpy(np.frombuffer(file, np.uint8).copy())
    tensors[f"{name}.seen"] = torch.from_numpy(seen(file).copy())
save_file(tensors, os.path.join(HERE, "pictures.safetensors"))
print(f"{len(files)} files")
