"""Documents that attack whoever opens them: made when needed, never stored.

Each is small on disk and quick to make, and does its harm to a trusting engine such as the worker in
`disarm`: it eats memory, or time, or is nonsense. The damaged ones are cut or flipped copies of documents
in tests/corpus. `EXPECTED` says how each ends in a sandbox with the limits in `LIMITS`.
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).resolve().parents[2] / "tests" / "corpus"

MIB = 1024**2
GIB = 1024**3

LIMITS = {"memory": 512 * MIB, "wall_seconds": 10.0}
"""What `EXPECTED` was measured under; the fields are those of `gwsandbox.Limits`."""

_FAILS = frozenset(("FAILED",))
_EATS_MEMORY = frozenset(("OUT_OF_MEMORY",))
_EATS_TIME = frozenset(("TIMED_OUT",))

EXPECTED: dict[str, frozenset[str]] = {
    # The comments say what each did to the worker without a limit, but stopped at 4 GiB and at 75 s.
    "bmp-bomb.bmp": _EATS_MEMORY | _FAILS,  # 4 GiB in 40 s; Pillow 10.3 takes it for damaged
    "cut.docx": _FAILS,
    "cut.odt": _FAILS,
    "cut.pdf": _FAILS,
    "cut.png": _FAILS,
    "docx-elements.docx": _EATS_MEMORY,  # 1.6 GiB and 38 s, then it is through
    "docx-entities.docx": _FAILS | _EATS_MEMORY,  # as xml-nested-entities.xml
    "docx-zip-bomb.docx": _EATS_MEMORY,  # 4 GiB in 46 s, of the 8 that it holds
    "flipped.jpg": _FAILS,
    "flipped.pdf": _FAILS,
    "flipped.xlsx": _FAILS,
    "gif-canvas-bomb.gif": _EATS_MEMORY,  # 4 GiB in 14 s
    "gif-frames-bomb.gif": _EATS_MEMORY,  # 4 GiB in 20 s
    "no-document.pdf": _FAILS,
    "pdf-deep.pdf": _FAILS,
    # 4 GiB in 21 s. Where allocations fail and no process is killed, qpdf says that the file is damaged.
    "pdf-object-stream-bomb.pdf": _EATS_MEMORY | _FAILS,
    "pdf-page-loop.pdf": _FAILS,
    "pdf-stream-bomb.pdf": _EATS_TIME,  # 75 s and running, in 43 MiB
    "png-bomb.png": _EATS_MEMORY,  # 4 GiB in 7 s, of the 10 that it holds
    # libxml2 refuses to expand entities without measure; that of Debian 12 (2.9.14) does it, as told to.
    "svg-nested-entities.svg": _FAILS | _EATS_MEMORY,
    "tiff-bomb.tif": _EATS_MEMORY,  # 4 GiB in 26 s, of the 12 that it holds
    "xml-deep.xml": frozenset(("FAILED", "SUCCEEDED")),  # which depth is too much is libxml2's choice
    "xml-entity-loop.xml": _FAILS,
    "xml-nested-entities.xml": _FAILS | _EATS_MEMORY,
    "xml-quadratic.xml": _FAILS | _EATS_MEMORY | _EATS_TIME,
    "xml-scripts.xml": _EATS_TIME,  # 75 s and running, in 169 MiB
}
"""The names of the outcomes that are right, by the name of the file.

On a machine so slow that memory cannot be filled before the time is up, what eats memory may be TIMED_OUT.
"""


def make_hostile_documents(folder: Path) -> list[Path]:
    """Write them all into `folder`, which is made if it is missing; the paths, in order of name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in _MAKERS.items():
        (folder / name).write_bytes(make())
    return sorted(folder / name for name in _MAKERS)


# --- building blocks ---------------------------------------------------------------------------------------


def _deflated(start: bytes, zeros: int) -> bytes:
    """Raw deflate of `start` and then so many zeros, a whole number of MiB: one block stands for each."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * (zeros // MIB) + b"\x03\x00"


def _zlibbed(start: bytes, zeros: int) -> bytes:
    # Adler-32: a zero leaves the low half as it is, and adds it once more to the high half.
    high, low = divmod(zlib.adler32(start), 1 << 16)
    return b"\x78\xda" + _deflated(start, zeros) + struct.pack(">HH", (high + zeros * low) % 65521, low)


def _crc_of_zeros(size: int) -> int:
    """The CRC-32 of `size` zeros in a moment: feeding one zero bit is a linear map, which can be squared."""
    column = [0xEDB88320, *(1 << bit for bit in range(31))]
    state, bits = 0xFFFFFFFF, size * 8
    while bits:
        if bits & 1:
            state = _applied(column, state)
        column = [_applied(column, bit) for bit in column]
        bits >>= 1
    return state ^ 0xFFFFFFFF


def _applied(column: list[int], state: int) -> int:
    result = 0
    for bit, value in enumerate(column):
        if state >> bit & 1:
            result ^= value
    return result


def _pdf(objects: dict[int, bytes], *, root: int = 1) -> bytes:
    """A PDF with these objects and a classic cross-reference table."""
    out = io.BytesIO()
    out.write(b"%PDF-1.7\n")
    offsets = {}
    for number, body in objects.items():
        offsets[number] = out.tell()
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start, size = out.tell(), max(objects) + 1
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % size)
    out.writelines(b"%010d 00000 n \n" % offsets[number] for number in range(1, size))
    out.write(b"trailer\n<< /Size %d /Root %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, root, start))
    return out.getvalue()


def _stream(data: bytes, entries: bytes) -> bytes:
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (entries, len(data), data)


def _one_page(content: bytes) -> dict[int, bytes]:
    return {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << >> >>",
        4: content,
    }


def _tiff(entries: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A little-endian TIFF of one page; `data` starts right behind the header."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = 8 + len(data)
    return struct.pack("<4sI", b"II*\x00", start) + data + struct.pack("<H", len(entries)) + directory + bytes(4)


def _sample(name: str) -> bytes:
    return (CORPUS / name).read_bytes()


def _cut(name: str) -> bytes:
    sample = _sample(name)
    return sample[: len(sample) * 2 // 3]


def _flipped(name: str, *, every: int) -> bytes:
    """Flip one bit in about each `every` bytes, the same ones each time; the first bytes, the magic, stay."""
    sample = bytearray(_sample(name))
    chance = random.Random(name)
    for _ in range(len(sample) // every + 1):
        sample[chance.randrange(16, len(sample))] ^= 1 << chance.randrange(8)
    return bytes(sample)


# --- what eats memory --------------------------------------------------------------------------------------


def _docx_zip_bomb() -> bytes:
    """The main part of a document is 8 GiB of zeros, packed in 8 MiB."""
    packed, size = _deflated(b"", 8 * GIB), 8 * GIB
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_sample("office/pandoc-report.docx"))) as sample,
        zipfile.ZipFile(out, "w") as bomb,
    ):
        for name in sample.namelist():
            if name != "word/document.xml":
                bomb.writestr(zipfile.ZipInfo(name), sample.read(name))
        part = zipfile.ZipInfo("word/document.xml")
        bomb.writestr(part, packed)
        # What counts is the directory at the end, which is still to be written.
        part.compress_type, part.file_size, part.CRC = zipfile.ZIP_DEFLATED, size, _crc_of_zeros(size)
    return out.getvalue()


def _docx_with(main_part: bytes) -> bytes:
    """A real document with another main part."""
    out = io.BytesIO()
    sample = io.BytesIO(_sample("office/pandoc-report.docx"))
    with zipfile.ZipFile(sample) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, main_part if name == "word/document.xml" else old.read(name))
    return out.getvalue()


def _docx_elements() -> bytes:
    """Eight million empty elements: 32 MB of XML, and a tree of more than a gigabyte."""
    return _docx_with(b"<a>" + b"<b/>" * 8_000_000 + b"</a>")


def _docx_entities() -> bytes:
    return _docx_with(_xml_nested_entities())


def _png_bomb() -> bytes:
    """100,000 by 100,000 pixels of one bit: 1.25 GB of scan lines, 10 GB as Pillow holds them."""
    side = 100_000
    row = 1 + side // 8
    zeros = -(-side * row // MIB) * MIB
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _zlibbed(b"", zeros)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _tiff_bomb() -> bytes:
    """100,000 by 131,072 grey pixels in 1,000 strips, all of which are the same 13 kB."""
    width, strips, rows = 131_072, 1000, 96
    strip = _zlibbed(b"", width * rows)
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


def _gif_canvas_bomb() -> bytes:
    """A canvas of 65,535 by 65,535 for pictures of one pixel each."""
    return _gif(65_535, frames=2)


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


def _bmp_bomb() -> bytes:
    """60,000 by 60,000 pixels, all of which a run-length code skips, 255 rows at a time."""
    side, rle8 = 60_000, 1
    code = b"\x00\x02\x00\xff" * (side // 255) + b"\x00\x01"
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, rle8, len(code), 0, 0, 2, 0)
    start = 14 + len(info) + 8
    return struct.pack("<2sIHHI", b"BM", start + len(code), 0, 0, start) + info + bytes(8) + code


def _xml_nested_entities() -> bytes:
    """A billion laughs: ten entities, each ten times the one before it."""
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    return f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e0 "haha">{levels}]><a>&e9;</a>'.encode()


def _svg_nested_entities() -> bytes:
    """The same in elements, of which each costs more memory than a word."""
    levels = "".join(f'<!ENTITY e{n} "<g>{f"&e{n - 1};" * 10}</g>">' for n in range(1, 9))
    return f"<!DOCTYPE svg [<!ENTITY e0 \"<path d='M0 0'/>\">{levels}]><svg>&e8;</svg>".encode()


def _xml_quadratic() -> bytes:
    """One long entity, 100,000 times: no nesting, 10 GB all the same."""
    return f'<!DOCTYPE a [<!ENTITY e "{"x" * 100_000}">]><a>{"&e;" * 100_000}</a>'.encode()


def _pdf_object_stream_bomb() -> bytes:
    """A compressed object stream, packed twice, which has to be unpacked whole to find one object in it."""
    packed = zlib.compress(_zlibbed(b"3 0 << /Type /Pages /Kids [] /Count 0 >> ", 16 * GIB), 9)
    entries = b"/Type /ObjStm /N 1 /First 4 /Filter [/FlateDecode /FlateDecode]"
    return _pdf_with_object_stream({1: b"<< /Type /Catalog /Pages 3 0 R >>", 2: _stream(packed, entries)})


def _pdf_with_object_stream(objects: dict[int, bytes]) -> bytes:
    """A PDF with a cross-reference stream (4), which says that object 3 is the first one in stream 2."""
    out = b"%PDF-1.7\n"
    offsets = {}
    for number, body in objects.items():
        offsets[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    free, plain, packed = 0, 1, 2
    rows = [
        (free, 0, 255),
        (plain, offsets[1], 0),
        (plain, offsets[2], 0),
        (packed, 2, 0),
        (plain, len(out), 0),
    ]
    table = b"".join(struct.pack(">BIB", *row) for row in rows)
    entries = b"/Type /XRef /Size 5 /W [1 4 1] /Root 1 0 R"
    return out + b"4 0 obj\n%s\nendobj\nstartxref\n%d\n%%%%EOF\n" % (_stream(table, entries), len(out))


# --- what eats time ----------------------------------------------------------------------------------------


def _pdf_stream_bomb() -> bytes:
    """A page's content of 64 GiB, packed twice: it passes through in small pieces, for minutes."""
    packed = zlib.compress(_zlibbed(b"", 64 * GIB), 6)
    return _pdf(_one_page(_stream(packed, b"/Filter [/FlateDecode /FlateDecode]")))


def _gif_frames_bomb() -> bytes:
    """A great many frames which change one pixel of a large canvas each."""
    return _gif(4000, frames=2000)


def _xml_scripts() -> bytes:
    """Scripts with text between them: each one that goes makes the text before it longer, and copies it."""
    return b"<page>" + b"<script/>text" * 400_000 + b"</page>"


# --- what is nonsense --------------------------------------------------------------------------------------


def _xml_deep() -> bytes:
    """200,000 elements, each inside the one before it."""
    return b"<a>" * 200_000 + b"</a>" * 200_000


def _xml_entity_loop() -> bytes:
    return b'<!DOCTYPE a [<!ENTITY a "&b;"><!ENTITY b "&a;">]><a>&a;</a>'


def _pdf_page_loop() -> bytes:
    """A page tree that is its own child."""
    return _pdf({1: b"<< /Type /Catalog /Pages 2 0 R >>", 2: b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>"})


def _pdf_deep() -> bytes:
    """Arrays inside arrays, 200,000 of them."""
    return _pdf(_one_page(b"[" * 200_000 + b"]" * 200_000))


def _no_document() -> bytes:
    """Bytes of no kind at all, under a name that promises one."""
    return random.Random(0).randbytes(100_000)


_MAKERS: dict[str, Callable[[], bytes]] = {
    "docx-zip-bomb.docx": _docx_zip_bomb,
    "docx-elements.docx": _docx_elements,
    "docx-entities.docx": _docx_entities,
    "png-bomb.png": _png_bomb,
    "tiff-bomb.tif": _tiff_bomb,
    "gif-canvas-bomb.gif": _gif_canvas_bomb,
    "gif-frames-bomb.gif": _gif_frames_bomb,
    "bmp-bomb.bmp": _bmp_bomb,
    "xml-nested-entities.xml": _xml_nested_entities,
    "svg-nested-entities.svg": _svg_nested_entities,
    "xml-quadratic.xml": _xml_quadratic,
    "xml-scripts.xml": _xml_scripts,
    "xml-deep.xml": _xml_deep,
    "xml-entity-loop.xml": _xml_entity_loop,
    "pdf-object-stream-bomb.pdf": _pdf_object_stream_bomb,
    "pdf-stream-bomb.pdf": _pdf_stream_bomb,
    "pdf-page-loop.pdf": _pdf_page_loop,
    "pdf-deep.pdf": _pdf_deep,
    "no-document.pdf": _no_document,
    "cut.pdf": lambda: _cut("pdf/pdftex-article.pdf"),
    "cut.png": lambda: _cut("images/astronaut.png"),
    "cut.docx": lambda: _cut("office/libreoffice-report.docx"),
    "cut.odt": lambda: _cut("odf/libreoffice-report.odt"),
    "flipped.jpg": lambda: _flipped("images/china.jpg", every=500),
    "flipped.pdf": lambda: _flipped("pdf/pdftex-article.pdf", every=5000),
    "flipped.xlsx": lambda: _flipped("office/libreoffice-sheet.xlsx", every=5000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write hostile documents into a folder.")
    parser.add_argument("folder", type=Path)
    started = time.monotonic()
    for path in make_hostile_documents(parser.parse_args().folder):
        print(f"{path.stat().st_size:10,}  {path}")
    print(f"{time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
