"""A content-disarm worker: one untrusted document in, the same document without its active parts out.

What passes, and what the worker takes out:

- PDF, rewritten with pikepdf: scripts, actions that leave the page, what runs on opening, embedded files,
  XFA forms, rich media. A damaged PDF is refused, because each viewer would repair it differently.
- PNG, JPEG, GIF, TIFF, WebP, BMP, decoded and encoded again with Pillow: metadata, colour profiles, and
  all that follows the pixels. Animation frames and TIFF pages stay; 16-bit colour becomes 8-bit.
- OOXML (docx, xlsx, pptx and their macro kinds) and ODF (odt, ods, odp, odg), unpacked, cleaned and packed
  again: macros, scripts, OLE objects, external links, and every part that nothing in the package refers to.
- XML (SVG and XHTML too), parsed and serialised with lxml: DTD and entities, processing instructions, comments,
  scripts, event handlers, references to anything outside the document.

The content decides the kind, never the name.

About resources the worker trusts its input on purpose: it reads documents whole, has no guard on sizes
after decompression, lifts that of Pillow (`MAX_IMAGE_PIXELS`), and raises the limits of libxml2 on the length
of texts and the depth of trees (`huge_tree`). It is as naive as real engines are, and a hostile document
makes it eat memory and time without end. The sandbox around it holds the limits.

It cannot lift one guard: the libxml2 of current lxml refuses entities that expand out of all proportion, with
`huge_tree` too, so nested ones end as a `BrokenDocument`. An old libxml2 (2.9, of Debian 12) expands them.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from disarm.errors import BrokenDocument, DisarmError, UnsupportedDocument
from disarm.images import disarm_image
from disarm.kinds import document_kind
from disarm.markup import disarm_xml
from disarm.odf import ODF_KINDS, disarm_odf
from disarm.ooxml import OOXML_KINDS, disarm_ooxml
from disarm.pdf import disarm_pdf
from disarm.shared import Removed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BrokenDocument", "DisarmError", "UnsupportedDocument", "disarm_bytes", "disarm_file", "document_kind"]


def disarm_file(input_file: str | Path, output_file: str | Path) -> str:
    """Write the clean document to `output_file` and return one line on what was removed."""
    clean, summary = _disarm(Path(input_file).read_bytes())
    target = Path(output_file)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when whole: a worker killed while it writes leaves no half of a document under that name.
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    partial.write_bytes(clean)
    partial.replace(target)
    return summary


def disarm_bytes(input_file: str | Path) -> bytes:
    """Return the clean document: file to memory."""
    return _disarm(Path(input_file).read_bytes())[0]


def _disarm(data: bytes) -> tuple[bytes, str]:
    kind = document_kind(data)
    removed: Removed = Counter()
    clean = _cleaner(kind)(data, removed)
    found = ", ".join(f"{count} {what}" for what, count in sorted((+removed).items()))
    return clean, f"{kind}: removed {found or 'nothing'}"


def _cleaner(kind: str) -> Callable[[bytes, Removed], bytes]:
    if kind == "pdf":
        return disarm_pdf
    if kind == "xml":
        return disarm_xml
    if kind in OOXML_KINDS.values():
        return disarm_ooxml
    if kind in ODF_KINDS.values():
        return disarm_odf
    return disarm_image
