"""Packages, as OOXML and ODF documents are: opening, packing, and the media in both."""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
import zlib
from typing import TYPE_CHECKING

from disarm.errors import BrokenDocument, UnsupportedDocument
from disarm.images import IMAGE_MAGIC, disarm_image
from disarm.markup import disarm_xml
from disarm.shared import Removed

if TYPE_CHECKING:
    from collections.abc import Iterator

Parts = dict[str, bytes]

# Compound files (OLE2, VBA), archives and programs do not belong in a package, under any name.
FOREIGN_MAGIC = (b"\xd0\xcf\x11\xe0", b"PK\x03\x04", b"MZ", b"\x7fELF")


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[zipfile.ZipFile]:
    """Open the package to read.

    Raises:
        BrokenDocument: It is damaged.
        UnsupportedDocument: It has a password.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            yield package
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise BrokenDocument(f"damaged package: {error}") from error
    except RuntimeError as error:  # zipfile's error for a member with a password
        raise UnsupportedDocument(f"locked package: {error}") from error


def unpack(data: bytes) -> Parts:
    """Return the content of every member by its name, without the folders."""
    with opened(data) as package:
        names = package.namelist()
        if len(set(names)) < len(names):
            raise BrokenDocument("damaged package: two members have one name")
        return {name: package.read(name) for name in names if not name.endswith("/")}


def pack(parts: Parts) -> bytes:
    """Pack in the order given; ODF wants `mimetype` first and stored. The times are not kept."""
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w") as package:
        for name, content in parts.items():
            how = zipfile.ZIP_STORED if name == "mimetype" else zipfile.ZIP_DEFLATED
            package.writestr(zipfile.ZipInfo(name), content, compress_type=how)
    return clean.getvalue()


def clean_media(name: str, content: bytes, removed: Removed) -> bytes:
    """Encode a picture inside a package again; other media (EMF, WMF, fonts) stay as they are."""
    if any(re.match(magic, content, re.DOTALL) for magic, _ in IMAGE_MAGIC):
        return disarm_image(content, removed)
    if name.endswith(".svg"):
        return disarm_xml(content, removed)
    return content
