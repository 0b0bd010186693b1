"""What is active in a document, found by code that shares nothing with the worker's.

It has to find what the originals are known to hold; only then does its silence about the clean ones mean anything.
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

from documents import IMAGES, ODF, OOXML, Image, etree, pikepdf


def active_content(data: bytes, kind: str) -> set[str]:
    if kind == "pdf":
        return set(active_in_pdf(data))
    if kind in IMAGES:
        return metadata_of(data)
    if kind in OOXML:
        return active_in_ooxml(members(data))
    if kind in ODF:
        return active_in_odf(members(data))
    return active_in_xml(data)


def active_in_pdf(data: bytes) -> list[str]:
    with pikepdf.open(io.BytesIO(data)) as pdf:
        found = [key for key in ("/OpenAction", "/AA", "/Collection") if key in pdf.Root]
        found += [key for key in pdf.trailer.keys() if key == "/AdditionalStreams"]  # noqa: SIM118
        for item in [*pdf.objects, pdf.Root]:
            found += active_in_object(item, 0)
    return found


def active_in_object(item: Any, depth: int) -> list[str]:
    """Look at an object and at the direct ones in it, by what they are and not by who refers to them."""
    if isinstance(item, pikepdf.Array):
        children, found = list(item), []
    elif isinstance(item, (pikepdf.Dictionary, pikepdf.Stream)):
        children = [item[key] for key in item.keys()]  # noqa: SIM118
        names = {"/JavaScript", "/EmbeddedFiles", "/EF", "/XFA", "/JS", "/RichMediaContent"}
        found = sorted(names & set(item.keys()))
        action = str(item.get("/S", ""))
        if action in {"/Launch", "/URI", "/GoToR", "/SubmitForm", "/ImportData", "/Named", "/JavaScript"}:
            found.append(action)
        if str(item.get("/Type", "")) == "/EmbeddedFile" or str(item.get("/Subtype", "")) == "/FileAttachment":
            found.append("/EmbeddedFile")
    else:
        return []
    for child in children:
        if isinstance(child, pikepdf.Object) and not child.is_indirect:
            assert depth < 100
            found += active_in_object(child, depth + 1)
    return found


def metadata_of(data: bytes) -> set[str]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        found = {key for key in ("exif", "xmp", "icc_profile", "comment", "photoshop") if image.info.get(key)}
        found |= {"text"} if getattr(image, "text", None) else set()
        found |= {"exif"} if set(dict(image.getexif())) - TIFF_STRUCTURE else set()
    for marker in (
        b"Exif\0\0",
        b"ns.adobe.com/xap",
        b"Photoshop 3.0",
        b"ICC_PROFILE",
        b"Somebody",
        b"A comment",
    ):
        found |= {marker.decode(errors="replace")} if marker in data else set()
    return found


# Pillow shows the tags that say how a TIFF's pixels are stored as if they were EXIF.
TIFF_STRUCTURE = {
    254,
    256,
    257,
    258,
    259,
    262,
    273,
    277,
    278,
    279,
    282,
    283,
    284,
    292,
    293,
    296,
    297,
    317,
    320,
    338,
    339,
}


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        assert package.testzip() is None
        return {name: package.read(name) for name in package.namelist()}


def active_in_ooxml(parts: dict[str, bytes]) -> set[str]:
    found = {part for part in ("vbaProject.bin", "vbaData.xml") if any(name.endswith(part) for name in parts)}
    found |= {folder for folder in ("embeddings", "externalLinks", "activeX") if any(f"/{folder}/" in n for n in parts)}
    for name, content in parts.items():
        if name.endswith(".rels"):
            found |= {"External" for item in etree.fromstring(content) if item.get("TargetMode") == "External"}
        elif name.endswith(".xml") and re.search(rb"<f[ >][^<]*\[\d+\]", content):
            found.add("external formula")
    return found


def active_in_odf(parts: dict[str, bytes]) -> set[str]:
    found = {name.split("/")[0] for name in parts} & {"Basic", "Scripts", "Dialogs", "Thumbnails"}
    for name, content in parts.items():
        if not name.endswith(".xml") or name.startswith(("META-INF/", "Basic/")):
            continue
        for element in etree.fromstring(content).iter("*"):
            if etree.QName(element).localname in {"script", "event-listener", "object-ole"}:
                found.add(etree.QName(element).localname)
            found |= {"external link" for key, value in element.items() if leads_outside(key, value)}
    return found


def leads_outside(key: str, value: str) -> bool:
    return etree.QName(key).localname in {"href", "formula"} and bool(re.search(r"[a-z]+://", value))


def active_in_xml(data: bytes) -> set[str]:
    root = etree.fromstring(data, etree.XMLParser(huge_tree=True))
    found = {"DTD"} if b"<!DOCTYPE" in data else set()
    found |= {"processing instruction"} if b"<?xml-" in data else set()
    for element in root.iter("*"):
        found |= {"script"} if etree.QName(element).localname == "script" else set()
        found |= {"handler" for key in element.keys() if re.match(r"on[a-z]+$", key)}  # noqa: SIM118
    return found
