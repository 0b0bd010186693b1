"""PDF, rewritten with pikepdf."""

from __future__ import annotations

import io
import re

import pikepdf

from disarm.errors import BrokenDocument, UnsupportedDocument
from disarm.shared import Removed, words

_ACTIONS = words("""
    /GoTo3DView /GoToDp /GoToE /GoToR /Hide /ImportData /JavaScript /Launch /Movie /Named /Rendition
    /ResetForm /RichMediaExecute /SetOCGState /Sound /SubmitForm /Thread /Trans /URI
""")
_MEDIA = words("/3D /FileAttachment /Movie /RichMedia /Screen /Sound")
_TRAILER = words("""
    /DecodeParms /Encrypt /Filter /ID /Index /Info /Length /Prev /Root /Size /Type /W /XRefStm
""")
_HARMLESS_COMPLAINT = "reported number of objects"  # pdfunite's documents say too little in /Size
_CATALOG = ("/OpenAction", "/AA", "/AF", "/Collection", "/URI", "/PieceInfo")


def disarm_pdf(data: bytes, removed: Removed) -> bytes:
    """Return the clean PDF."""
    try:
        with pikepdf.open(io.BytesIO(data), attempt_recovery=False) as pdf:
            # LibreOffice's hybrid PDFs hang the ODF source on the trailer.
            for key in set(pdf.trailer.keys()) - _TRAILER:
                _delete(pdf.trailer, key, removed)
            _scrub_catalog(pdf.Root, removed)
            for item in pdf.objects:
                _scrub_object(item, removed)
            clean = io.BytesIO()
            # pikepdf leaves out objects without a reference, and decodes and encodes every stream.
            pdf.save(clean, recompress_flate=True, object_stream_mode=pikepdf.ObjectStreamMode.generate)
            complaints = [text for text in map(str, pdf.get_warnings()) if _HARMLESS_COMPLAINT not in text]
    except pikepdf.PasswordError as error:
        raise UnsupportedDocument("an encrypted PDF, which needs a password") from error
    except pikepdf.PdfError as error:
        raise BrokenDocument(f"damaged PDF: {_without_source(error)}") from error
    if complaints:
        raise BrokenDocument(f"damaged PDF: {_without_source(complaints[0])}")
    return clean.getvalue()


def _without_source(complaint: object) -> str:
    """qpdf names the file first, which for pikepdf is the address of a buffer."""  # noqa: D403
    return re.sub(r"(?:WARNING: )?stream <[^>]*>:? ?", "", str(complaint))


def _scrub_catalog(catalog: pikepdf.Object, removed: Removed) -> None:
    for key in _CATALOG:
        _delete(catalog, key, removed)
    for key in ("/JavaScript", "/EmbeddedFiles", "/Renditions", "/URLS"):
        _delete(catalog.get("/Names"), key, removed)
    _delete(catalog.get("/AcroForm"), "/XFA", removed)


def _scrub_object(item: pikepdf.Object, removed: Removed) -> None:
    """Clean one indirect object and the direct ones inside it; each indirect one has its own turn."""
    stack = [item]
    while stack:
        thing = stack.pop()
        if isinstance(thing, pikepdf.Array):
            _scrub_array(thing, removed)
            inside = list(thing)
        elif isinstance(thing, (pikepdf.Dictionary, pikepdf.Stream)):
            _scrub_dictionary(thing, removed)
            inside = [thing[key] for key in thing.keys()]  # noqa: SIM118  iterating over a stream is an error
        else:
            continue
        stack.extend(child for child in inside if isinstance(child, pikepdf.Object) and not child.is_indirect)


def _scrub_array(array: pikepdf.Array, removed: Removed) -> None:
    for index in reversed(range(len(array))):
        if isinstance(array[index], pikepdf.Dictionary) and str(array[index].get("/Subtype")) in _MEDIA:
            del array[index]
            removed["media annotation"] += 1


def _scrub_dictionary(thing: pikepdf.Object, removed: Removed) -> None:
    for key in list(thing.keys()):
        if _is_action(thing[key]):
            _delete(thing, key, removed)
    if _is_action(thing, words("/GoTo")):
        _delete(thing, "/Next", removed)
    if "/EF" in thing and ("/F" in thing or "/UF" in thing):
        _delete(thing, "/EF", removed)
    if str(thing.get("/Type")) in {"/Page", "/Annot"}:
        _delete(thing, "/AF", removed)
        _delete(thing, "/PieceInfo", removed)


def _is_action(value: object, kinds: frozenset[str] = _ACTIONS) -> bool:
    return isinstance(value, pikepdf.Dictionary) and str(value.get("/S")) in kinds


def _delete(thing: pikepdf.Object | None, key: str, removed: Removed) -> None:
    if isinstance(thing, (pikepdf.Dictionary, pikepdf.Stream)) and key in thing:
        del thing[key]
        removed[key] += 1
