"""Office documents: a zip bomb, and parts that are too much."""

from __future__ import annotations

import io
import zipfile

from hostile_documents.markup import xml_nested_entities
from hostile_documents.packing import GIB, crc_of_zeros, deflated
from hostile_documents.samples import sample


def docx_zip_bomb() -> bytes:
    """The main part of a document is 8 GiB of zeros, packed in 8 MiB."""
    packed, size = deflated(b"", 8 * GIB), 8 * GIB
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(sample("office/pandoc-report.docx"))) as original,
        zipfile.ZipFile(out, "w") as bomb,
    ):
        for name in original.namelist():
            if name != "word/document.xml":
                bomb.writestr(zipfile.ZipInfo(name), original.read(name))
        part = zipfile.ZipInfo("word/document.xml")
        bomb.writestr(part, packed)
        # What counts is the directory at the end, which is still to be written.
        part.compress_type, part.file_size, part.CRC = zipfile.ZIP_DEFLATED, size, crc_of_zeros(size)
    return out.getvalue()


def _docx_with(main_part: bytes) -> bytes:
    """A real document with another main part."""
    out = io.BytesIO()
    original = io.BytesIO(sample("office/pandoc-report.docx"))
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, main_part if name == "word/document.xml" else old.read(name))
    return out.getvalue()


def docx_elements() -> bytes:
    """Eight million empty elements: 32 MB of XML, and a tree of more than a gigabyte."""
    return _docx_with(b"<a>" + b"<b/>" * 8_000_000 + b"</a>")


def docx_entities() -> bytes:
    return _docx_with(xml_nested_entities())
