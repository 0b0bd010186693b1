"""A content-disarm worker: one untrusted document in, the same document without its active parts out.

What passes, and what is taken out:

- PDF, rewritten with pikepdf: scripts, actions that leave the page, what runs on opening, embedded files,
  XFA forms, rich media. A damaged PDF is refused, because each viewer would mend it differently.
- PNG, JPEG, GIF, TIFF, WebP, BMP, decoded and encoded anew with Pillow: metadata, colour profiles, and
  whatever follows the pixels. Animation frames and TIFF pages stay; 16-bit colour becomes 8-bit.
- OOXML (docx, xlsx, pptx and their macro kinds) and ODF (odt, ods, odp, odg), unpacked, cleaned and packed
  anew: macros, scripts, OLE objects, external links, and every part that nothing in the package refers to.
- XML (SVG and XHTML too), serialised anew with lxml: DTD and entities, processing instructions, comments,
  scripts, event handlers, references to anything outside the document.

The kind is told from the content, never from the name.

The worker trusts its input about resources on purpose: it reads documents whole, has no guard on sizes
after decompression, and lifts those of Pillow (`MAX_IMAGE_PIXELS`) and of libxml2 (`huge_tree`). It is as
naive as engines in real life are, and a hostile document makes it eat memory and time without end. The
sandbox around it is what holds the limits.
"""

# lxml ships no types, and what is installed beside it differs: it is untyped here, and used in few places.
# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import argparse
import contextlib
import io
import os
import posixpath
import re
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pikepdf
from lxml import etree
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lxml.etree import _Element as Element

Removed = Counter[str]
"""What was taken out, and how often."""

Image.MAX_IMAGE_PIXELS = None


class DisarmError(ValueError):
    """The document could not be disarmed, and nothing was written."""


class UnsupportedDocument(DisarmError):
    """The content is of no kind that is known here, or it is locked."""


class BrokenDocument(DisarmError):
    """The content is not what its kind asks for."""


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


def document_kind(data: bytes) -> str:
    """Return pdf, png, jpeg, gif, tiff, webp, bmp, docx, docm, …, odt, …, or xml."""
    if b"%PDF-" in data[:1024]:
        return "pdf"
    for magic, kind in _IMAGE_MAGIC:
        if re.match(magic, data, re.DOTALL):
            return kind
    if data.startswith(b"PK\x03\x04"):
        return _package_kind(data)
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise UnsupportedDocument("a legacy Office (OLE2) or an encrypted document")
    if re.match(_XML_START, data):
        return "xml"
    raise UnsupportedDocument(f"content of no known kind, it starts with {data[:8]!r}")


_IMAGE_MAGIC = (
    (rb"\x89PNG\r\n\x1a\n", "png"),
    (rb"\xff\xd8\xff", "jpeg"),
    (rb"GIF8[79]a", "gif"),
    (rb"II[*+]\x00|MM\x00[*+]", "tiff"),
    (rb"RIFF....WEBP", "webp"),
    (rb"BM.{12}[\x0c-\xff]\x00\x00\x00", "bmp"),
)
# UTF-8 with or without its mark, then UTF-16 with one.
_XML_START = rb"(?:\xef\xbb\xbf)?\s*<|\xff\xfe<\x00|\xfe\xff\x00<"


def _disarm(data: bytes) -> tuple[bytes, str]:
    kind = document_kind(data)
    removed: Removed = Counter()
    clean = _cleaner(kind)(data, removed)
    found = ", ".join(f"{count} {what}" for what, count in sorted((+removed).items()))
    return clean, f"{kind}: removed {found or 'nothing'}"


def _cleaner(kind: str) -> Callable[[bytes, Removed], bytes]:
    if kind == "pdf":
        return _disarm_pdf
    if kind == "xml":
        return _disarm_xml
    if kind in _OOXML_KINDS.values():
        return _disarm_ooxml
    if kind in _ODF_KINDS.values():
        return _disarm_odf
    return _disarm_image


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- PDF ---------------------------------------------------------------------------------------------------

_ACTIONS = _words("""
    /GoTo3DView /GoToDp /GoToE /GoToR /Hide /ImportData /JavaScript /Launch /Movie /Named /Rendition
    /ResetForm /RichMediaExecute /SetOCGState /Sound /SubmitForm /Thread /Trans /URI
""")
_MEDIA = _words("/3D /FileAttachment /Movie /RichMedia /Screen /Sound")
_TRAILER = _words("""
    /DecodeParms /Encrypt /Filter /ID /Index /Info /Length /Prev /Root /Size /Type /W /XRefStm
""")
_HARMLESS_COMPLAINT = "reported number of objects"  # pdfunite's documents say too little in /Size
_CATALOG = ("/OpenAction", "/AA", "/AF", "/Collection", "/URI", "/PieceInfo")


def _disarm_pdf(data: bytes, removed: Removed) -> bytes:
    try:
        with pikepdf.open(io.BytesIO(data), attempt_recovery=False) as pdf:
            # LibreOffice's hybrid PDFs hang the ODF source on the trailer.
            for key in set(pdf.trailer.keys()) - _TRAILER:
                _delete(pdf.trailer, key, removed)
            _scrub_catalog(pdf.Root, removed)
            for item in pdf.objects:
                _scrub_object(item, removed)
            clean = io.BytesIO()
            # What nothing refers to any longer is not written; every stream is decoded and encoded anew.
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
    if _is_action(thing, _words("/GoTo")):
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


# --- images ------------------------------------------------------------------------------------------------


def _disarm_image(data: bytes, removed: Removed) -> bytes:
    try:
        with Image.open(io.BytesIO(data)) as image:
            _count_metadata(image, removed)
            lossless = b"VP8L" in data[:64]
            return _encode(image, _still_format(image), lossless=lossless)
    except UnidentifiedImageError as error:
        raise BrokenDocument("damaged image: its header makes no sense") from error
    except (OSError, SyntaxError, EOFError, ValueError, IndexError, zlib.error) as error:
        if "out of memory" in str(error):  # what Pillow makes of a codec's failed malloc
            raise MemoryError(str(error)) from error
        raise BrokenDocument(f"damaged image: {error}") from error


def _still_format(image: Image.Image) -> str:
    # MPO is a JPEG file with more images behind the first.
    return "JPEG" if image.format in {"MPO", "JPEG"} else str(image.format)


def _count_metadata(image: Image.Image, removed: Removed) -> None:
    names = {"exif": "EXIF", "xmp": "XMP", "icc_profile": "colour profile", "comment": "comment"}
    for key, name in names.items():
        removed[name] += bool(image.info.get(key))
    removed["text"] += len(getattr(image, "text", None) or ())


def _encode(image: Image.Image, kind: str, *, lossless: bool) -> bytes:
    shown = [image] if kind == "JPEG" else ImageSequence.Iterator(image)
    frames = [_bare(frame) for frame in shown]
    options = _encoder_options(image, kind, frames[0])
    if kind == "WEBP":
        options |= {"lossless": lossless}
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": frames[1:]}
        options |= {} if kind == "TIFF" else _timing(image, frames)
    clean = io.BytesIO()
    frames[0].save(clean, kind, **options)
    return clean.getvalue()


def _bare(frame: Image.Image) -> Image.Image:
    """Copy the pixels, and of what stands beside them only transparency and timing."""
    # The camera's turn is in the EXIF that goes: turn the pixels instead.
    bare = ImageOps.exif_transpose(frame)
    bare.info = {key: bare.info[key] for key in ("transparency", "duration") if key in bare.info}
    return bare


def _encoder_options(image: Image.Image, kind: str, first: Image.Image) -> dict[str, Any]:
    if kind == "JPEG":
        return {"quality": 90, "progressive": bool(image.info.get("progressive"))}
    if kind == "TIFF":
        return {"compression": "group4" if first.mode == "1" else "tiff_adobe_deflate"}
    return {"quality": 85, "method": 2} if kind == "WEBP" else {}


def _timing(image: Image.Image, frames: list[Image.Image]) -> dict[str, Any]:
    durations = [round(frame.info.get("duration", 100)) for frame in frames]
    # GIF: frames come whole out of the decoder, so each one replaces what was there (2).
    disposal = {"disposal": 2} if image.format == "GIF" else {}
    return {"duration": durations, "loop": image.info.get("loop", 0)} | disposal


# --- XML ---------------------------------------------------------------------------------------------------

_ACTIVE = _words("applet base embed foreignobject frame iframe object")
_REFERENCES = _words("action background data formaction href poster src srcset")
_PASSIVE_DATA = re.compile(r"#|data:image/(?:png|jpeg|gif|webp)[;,]|$", re.IGNORECASE)
_FOLLOWED = re.compile(r"#|https?:|mailto:|[^:]*$", re.IGNORECASE)
_FETCHING_STYLE = re.compile(
    r"@import[^;]*;?|expression\s*\([^)]*\)|url\(\s*(?![\"']?\s*(?:#|data:image/))[^)]*\)", re.IGNORECASE
)


def _disarm_xml(data: bytes, removed: Removed) -> bytes:
    root = _parse(data, removed)
    if etree.QName(root).localname.lower() == "script":
        raise BrokenDocument("nothing would be left: the whole document is a script")
    for element in list(root.iter("*")):
        _scrub_element(element, removed)
    return _serialise(root)


def _parse(data: bytes, removed: Removed) -> Element:
    # Entities are expanded, but files and hosts that they name are not read. huge_tree lifts libxml2's limits
    # as far as it can: newer ones refuse all the same to expand without measure, and lxml cannot allow it.
    parser = etree.XMLParser(huge_tree=True, no_network=True, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        if error.code == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError("the XML parser has no memory left") from error
        raise BrokenDocument(f"not well-formed XML: {error.msg}") from error
    if root.getroottree().docinfo.doctype:
        removed["DTD"] += 1
    return root


def _serialise(root: Element) -> bytes:
    # The root and not its tree: the tree would bring the DTD along.
    clean: bytes = etree.tostring(root, encoding="UTF-8", standalone=True)
    return clean


def _scrub_element(element: Element, removed: Removed) -> None:
    tag = etree.QName(element)
    name = tag.localname.lower()
    # SVG and XHTML: browsers act on what they find there. Other vocabularies may use the same names in peace.
    acted_on = (tag.namespace or "").endswith(("/svg", "/xhtml"))
    if name == "script" or (acted_on and (name in _ACTIVE or _aims_at_link(element))):
        _drop(element)
        removed["script" if name == "script" else "active element"] += 1
    elif acted_on:
        _scrub_attributes(element, name, removed)
        if name == "style" and element.text and _FETCHING_STYLE.search(element.text):
            element.text = _FETCHING_STYLE.sub("", element.text)
            removed["style that fetches"] += 1


def _aims_at_link(element: Element) -> bool:
    """Tell whether it is an SVG animation of a link's target, or a page's jump elsewhere."""
    target: str = element.get("attributeName", "").lower()
    return target.endswith("href") or bool(element.get("http-equiv", "").lower() == "refresh")


def _scrub_attributes(element: Element, tag: str, removed: Removed) -> None:
    allowed = _FOLLOWED if tag in {"a", "area"} else _PASSIVE_DATA
    for key, value in element.items():
        name = etree.QName(key).localname.lower()
        if name.startswith("on"):
            del element.attrib[key]
            removed["event handler"] += 1
        elif name in _REFERENCES and not allowed.match(re.sub(r"[\x00-\x20]", "", value)):
            del element.attrib[key]
            removed["reference"] += 1
        elif _FETCHING_STYLE.search(value):
            element.set(key, _FETCHING_STYLE.sub("", value))
            removed["style that fetches"] += 1


def _drop(element: Element) -> None:
    """Take an element out, and leave the text that follows it."""
    parent, before, tail = element.getparent(), element.getprevious(), element.tail
    if parent is None:  # gone already, with what it stood in
        return
    if tail and before is not None:
        before.tail = (before.tail or "") + tail
    elif tail:
        parent.text = (parent.text or "") + tail
    parent.remove(element)


# --- packages: OOXML and ODF -------------------------------------------------------------------------------

Parts = dict[str, bytes]


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            yield package
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise BrokenDocument(f"damaged package: {error}") from error
    except RuntimeError as error:  # what zipfile raises for a member with a password
        raise UnsupportedDocument(f"locked package: {error}") from error


def _unpack(data: bytes) -> Parts:
    with _opened(data) as package:
        names = package.namelist()
        if len(set(names)) < len(names):
            raise BrokenDocument("damaged package: two members have one name")
        return {name: package.read(name) for name in names if not name.endswith("/")}


def _pack(parts: Parts) -> bytes:
    """Pack in the order given; ODF wants `mimetype` first and stored. The times are not kept."""
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w") as package:
        for name, content in parts.items():
            how = zipfile.ZIP_STORED if name == "mimetype" else zipfile.ZIP_DEFLATED
            package.writestr(zipfile.ZipInfo(name), content, compress_type=how)
    return clean.getvalue()


def _package_kind(data: bytes) -> str:
    with _opened(data) as package:
        names = package.namelist()
        mimetype = package.read("mimetype") if "mimetype" in names else b""
        types = package.read("[Content_Types].xml") if "[Content_Types].xml" in names else b""
    for marker, kind in _ODF_KINDS.items():
        if mimetype.strip().decode("ascii", "replace") == f"application/vnd.oasis.opendocument.{marker}":
            return kind
    for marker, kind in _OOXML_KINDS.items():
        if f"{marker}.main+xml".encode() in types:
            return kind
    raise UnsupportedDocument("a ZIP archive that is no OOXML or ODF document of a known kind")


def _clean_media(name: str, content: bytes, removed: Removed) -> bytes:
    """Encode a picture inside a package anew; other media (EMF, WMF, fonts) stay as they are."""
    if any(re.match(magic, content, re.DOTALL) for magic, _ in _IMAGE_MAGIC):
        return _disarm_image(content, removed)
    if name.endswith(".svg"):
        return _disarm_xml(content, removed)
    return content


# Compound files (OLE2, VBA), archives and programs have no business in a package, whatever they are called.
_FOREIGN_MAGIC = (b"\xd0\xcf\x11\xe0", b"PK\x03\x04", b"MZ", b"\x7fELF")

# --- OOXML -------------------------------------------------------------------------------------------------

_OOXML_KINDS = {
    "wordprocessingml.document": "docx",
    "word.document.macroEnabled": "docm",
    "spreadsheetml.sheet": "xlsx",
    "excel.sheet.macroEnabled": "xlsm",
    "presentationml.presentation": "pptx",
    "powerpoint.presentation.macroEnabled": "pptm",
}
# The last step of the relationship's type: strict and transitional documents differ in what precedes it.
# `calcChain` is no danger, but must not name cells whose formula goes; programs make it anew.
_DROPPED_RELATIONSHIPS = _words("""
    aFChunk activeXControlBinary attachedTemplate attachedToolbars calcChain connections control ctrlProp
    extensibility externalLink externalLinkPath keyMapCustomizations oleObject package printerSettings
    queryTable subDocument vbaProject vbaProjectSignature webextension webextensiontaskpanes wordVbaData
    xlIntlMacrosheet xlMacrosheet
""")
# Containers that the schemas forbid to be empty.
_PRUNABLE = _words("AlternateContent Choice Fallback controls definedNames externalReferences hyperlinks oleObjects")
_FETCHING_FIELD = re.compile(r"\s*(?:DDE|DDEAUTO|INCLUDE\w*|IMPORT|LINK|HYPERLINK(?!\s*\\l))\b", re.IGNORECASE)
_EXTERNAL_FORMULA = re.compile(r"(?<![\w\]])\[\d+\]|\|'[^']*'!|\b(?:WEBSERVICE|HYPERLINK)\(", re.IGNORECASE)


def _disarm_ooxml(data: bytes, removed: Removed) -> bytes:
    """Follow the relationships from the package's own on; what they do not reach is not packed again."""
    parts = _unpack(data)
    kept: Parts = {}
    pending = [""]  # the package itself is the source of the first relationships
    while pending:
        source = pending.pop()
        rels_name = posixpath.join(posixpath.dirname(source), "_rels", f"{posixpath.basename(source)}.rels")
        gone: set[str] = set()
        if rels_name in parts:
            kept[rels_name], targets, gone = _clean_relationships(parts, rels_name, source, removed)
            pending += [name for name in targets if name not in kept]
        if source:
            kept[source] = _clean_ooxml_part(source, parts[source], gone, removed)
    if len(kept) < 2:
        raise BrokenDocument("damaged package: its relationships lead to no document")
    removed["part"] += len(parts) - len(kept) - 1
    types = _clean_content_types(parts["[Content_Types].xml"], kept, removed)
    return _pack({"[Content_Types].xml": types, **kept})


def _clean_relationships(parts: Parts, name: str, source: str, removed: Removed) -> tuple[bytes, list[str], set[str]]:
    """Return the part without unwanted relationships, the parts that the rest lead to, and the ids gone."""
    root = _parse(parts[name], removed)
    targets: list[str] = []
    gone: set[str] = set()
    for relationship in list(root):
        target = unquote(relationship.get("Target", ""))
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(source), target)).lstrip("/")
        reason = _why_dropped(relationship, parts.get(path))
        if target.startswith("#"):
            continue
        if reason:
            gone.add(relationship.get("Id", ""))
            root.remove(relationship)
            removed[reason] += 1
        else:
            targets.append(path)
    return _serialise(root), targets, gone


def _why_dropped(relationship: Element, content: bytes | None) -> str | None:
    kind: str = relationship.get("Type", "").rpartition("/")[2]
    if relationship.get("TargetMode") == "External":
        return "external link"
    if kind in _DROPPED_RELATIONSHIPS:
        return kind
    if content is None:
        return "dangling link"
    return "foreign content" if content.startswith(_FOREIGN_MAGIC) else None


def _clean_ooxml_part(name: str, content: bytes, gone: set[str], removed: Removed) -> bytes:
    if not name.endswith((".xml", ".vml")):
        return _clean_media(name, content, removed)
    root = _parse(content, removed)
    for element in list(root.iter("*")):
        _scrub_ooxml_element(element, gone, removed)
    return _serialise(root)


def _scrub_ooxml_element(element: Element, gone: set[str], removed: Removed) -> None:
    name = etree.QName(element).localname
    lost = [key for key, value in element.items() if value in gone and "/relationships}" in key]
    if lost:
        _drop_reference(element, name, lost)
    elif name == "FmlaMacro" or element.get("action", "").startswith(("ppaction://macro", "ppaction://program")):
        _drop(element)
        removed["macro action"] += 1
    elif name in {"f", "definedName"} and _EXTERNAL_FORMULA.search(element.text or ""):
        _drop_formula(element, name)
        removed["external formula"] += 1
    elif name in {"fldSimple", "instrText"}:
        _scrub_field(element, removed)
    for key in ("macro", "href"):
        if element.attrib.pop(key, ""):
            removed[f"{key} attribute"] += 1


def _drop_reference(element: Element, name: str, lost: list[str]) -> None:
    """Mend the place that referred to a relationship now gone, so that the part still obeys its schema."""
    parent = element.getparent()
    in_list = parent is not None and etree.QName(parent).localname == "hyperlinks"
    if name in {"blip", "svgBlip"} or (name == "hyperlink" and not in_list):
        for key in lost:
            del element.attrib[key]
    elif name == "oleObj":
        _drop(next(element.iterancestors("{*}graphicFrame"), element))
    else:
        _drop_upwards(element)


def _drop_upwards(element: Element) -> None:
    """Take an element out, and then its containers for as long as they are left empty."""
    parent = element.getparent()
    _drop(element)
    if parent is not None and len(parent) == 0 and etree.QName(parent).localname in _PRUNABLE:
        _drop_upwards(parent)


def _drop_formula(element: Element, name: str) -> None:
    """A cell keeps the value that was last computed; a chart's reference must stay, if empty."""
    parent = element.getparent()
    if name == "definedName" or (parent is not None and etree.QName(parent).localname == "c"):
        _drop_upwards(element)
    else:
        element.text = ""


def _scrub_field(element: Element, removed: Removed) -> None:
    if _FETCHING_FIELD.match(element.text or ""):
        element.text = ""
        removed["field that fetches"] += 1
    for key, value in element.items():
        if _FETCHING_FIELD.match(value):
            element.set(key, "")
            removed["field that fetches"] += 1


def _clean_content_types(data: bytes, kept: Parts, removed: Removed) -> bytes:
    root = _parse(data, removed)
    for entry in list(root):
        if entry.get("PartName", "/").lstrip("/") not in {"", *kept}:
            root.remove(entry)
    return _serialise(root)


# --- ODF ---------------------------------------------------------------------------------------------------

_ODF_KINDS = {"text": "odt", "spreadsheet": "ods", "presentation": "odp", "graphics": "odg"}
_ODF_DROPPED_FOLDERS = ("Basic/", "Configurations2/", "Dialogs/", "META-INF/", "Scripts/", "Thumbnails/")
_ODF_MEDIA_FOLDERS = _words("Fonts Media ObjectReplacements Pictures")
_ODF_DROPPED_ELEMENTS = _words("""
    applet auto-reload cell-range-source dde-connection dde-connection-decls dde-link dde-links dde-source
    event-listener event-listeners execute-macro floating-frame object-ole plugin script scripts
    section-source table-source
""")
_OUTSIDE_FORMULA = re.compile(r"'(?:[a-z]+:|\.\.)[^']*'#|\b(?:DDE|WEBSERVICE|HYPERLINK)\(", re.IGNORECASE)


def _disarm_odf(data: bytes, removed: Removed) -> bytes:
    """Keep what the manifest lists and knows a use for; the rest is not packed again."""
    parts = _unpack(data)
    if "META-INF/manifest.xml" not in parts or "content.xml" not in parts:
        raise BrokenDocument("damaged package: no manifest or no content")
    manifest = _parse(parts["META-INF/manifest.xml"], removed)
    if manifest.find(".//{*}encryption-data") is not None:
        raise UnsupportedDocument("an encrypted ODF document, which needs a password")
    kept: Parts = {"mimetype": parts["mimetype"]}
    for entry in list(manifest):
        name = _attribute(entry, "full-path")
        if name in parts and _has_use(name, parts[name]):
            kept[name] = _clean_odf_part(name, parts[name], removed)
        elif not name.endswith("/") or name.startswith(_ODF_DROPPED_FOLDERS):
            manifest.remove(entry)
    for name in parts.keys() - kept.keys() - {"META-INF/manifest.xml"}:
        removed[f"part in {name.rpartition('/')[0] or 'the package'}"] += 1
    return _pack(kept | {"META-INF/manifest.xml": _serialise(manifest)})


def _attribute(element: Element, name: str) -> str:
    return next((value for key, value in element.items() if etree.QName(key).localname == name), "")


def _has_use(name: str, content: bytes) -> bool:
    folder = posixpath.basename(posixpath.dirname(name))
    known = name.endswith((".xml", ".rdf")) or folder in _ODF_MEDIA_FOLDERS
    return known and not name.startswith(_ODF_DROPPED_FOLDERS) and not content.startswith(_FOREIGN_MAGIC)


def _clean_odf_part(name: str, content: bytes, removed: Removed) -> bytes:
    if not name.endswith((".xml", ".rdf")):
        return _clean_media(name, content, removed)
    root = _parse(content, removed)
    for element in list(root.iter("*")):
        _scrub_odf_element(element, posixpath.dirname(name), removed)
    etree.strip_tags(root, _UNWRAPPED)
    return _serialise(root)


_UNWRAPPED = "unwrapped"
"""The name that an element gets whose content is to stay without it."""


def _scrub_odf_element(element: Element, folder: str, removed: Removed) -> None:
    name = etree.QName(element).localname
    if name in _ODF_DROPPED_ELEMENTS:
        _drop_odf_element(element)
        removed[name] += 1
        return
    for key, value in element.items():
        attribute = etree.QName(key).localname
        if attribute == "href" and _is_outside(value, folder):
            _drop_odf_link(element, name, key)
            removed["external link"] += 1
        elif attribute == "formula" and _OUTSIDE_FORMULA.search(value):
            del element.attrib[key]
            removed["external formula"] += 1


def _is_outside(reference: str, folder: str) -> bool:
    """Tell whether it leaves the package; a chart's own part refers to its document, `..`, and may."""
    path = posixpath.normpath(posixpath.join(folder, reference))
    return not reference.startswith("#") and (":" in reference or path.startswith(("/", "..")))


def _drop_odf_element(element: Element) -> None:
    """What an external formula last saw is stored as a hidden table: it goes with its source."""
    table = element.getparent()
    if etree.QName(element).localname == "table-source" and "'#" in _attribute(table, "name"):
        _drop(table)
    _drop(element)


def _drop_odf_link(element: Element, name: str, key: str) -> None:
    if name == "a":
        element.attrib.clear()
        element.tag = _UNWRAPPED
    elif name == "form":
        del element.attrib[key]
    else:
        _drop(element)


def main() -> int:
    """Disarm one document; the programs beside this one call the functions above instead."""
    parser = argparse.ArgumentParser(description="Write a document anew without its active parts.")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    try:
        print(disarm_file(arguments.input, arguments.output))
    except (DisarmError, OSError) as error:
        print(f"{arguments.input}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
