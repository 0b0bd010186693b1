"""What kind of document it is, by its content and never by its name."""

from __future__ import annotations

import re

from disarm.errors import UnsupportedDocument
from disarm.images import IMAGE_MAGIC
from disarm.odf import ODF_KINDS
from disarm.ooxml import OOXML_KINDS
from disarm.packages import opened

# UTF-8 with or without its mark, then UTF-16 with one.
_XML_START = rb"(?:\xef\xbb\xbf)?\s*<|\xff\xfe<\x00|\xfe\xff\x00<"


def document_kind(data: bytes) -> str:
    """Return pdf, png, jpeg, gif, tiff, webp, bmp, docx, docm, …, odt, …, or xml."""
    if b"%PDF-" in data[:1024]:
        return "pdf"
    for magic, kind in IMAGE_MAGIC:
        if re.match(magic, data, re.DOTALL):
            return kind
    if data.startswith(b"PK\x03\x04"):
        return _package_kind(data)
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise UnsupportedDocument("a legacy Office (OLE2) or an encrypted document")
    if re.match(_XML_START, data):
        return "xml"
    raise UnsupportedDocument(f"content of no known kind, it starts with {data[:8]!r}")


def _package_kind(data: bytes) -> str:
    with opened(data) as package:
        names = package.namelist()
        mimetype = package.read("mimetype") if "mimetype" in names else b""
        types = package.read("[Content_Types].xml") if "[Content_Types].xml" in names else b""
    for marker, kind in ODF_KINDS.items():
        if mimetype.strip().decode("ascii", "replace") == f"application/vnd.oasis.opendocument.{marker}":
            return kind
    for marker, kind in OOXML_KINDS.items():
        if f"{marker}.main+xml".encode() in types:
            return kind
    raise UnsupportedDocument("a ZIP archive that is no OOXML or ODF document of a known kind")
