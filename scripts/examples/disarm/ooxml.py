"""OOXML: docx, xlsx, pptx and their macro kinds."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from lxml import etree

from disarm.errors import BrokenDocument
from disarm.markup import drop, parse, serialise
from disarm.packages import FOREIGN_MAGIC, Parts, clean_media, pack, unpack
from disarm.shared import Removed, words

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

OOXML_KINDS = {
    "wordprocessingml.document": "docx",
    "word.document.macroEnabled": "docm",
    "spreadsheetml.sheet": "xlsx",
    "excel.sheet.macroEnabled": "xlsm",
    "presentationml.presentation": "pptx",
    "powerpoint.presentation.macroEnabled": "pptm",
}
# The last step of the relationship's type: strict and transitional documents differ in what precedes it.
# `calcChain` is no danger, but must not name cells that lose their formula; programs rebuild it.
_DROPPED_RELATIONSHIPS = words("""
    aFChunk activeXControlBinary attachedTemplate attachedToolbars calcChain connections control ctrlProp
    extensibility externalLink externalLinkPath keyMapCustomizations oleObject package printerSettings
    queryTable subDocument vbaProject vbaProjectSignature webextension webextensiontaskpanes wordVbaData
    xlIntlMacrosheet xlMacrosheet
""")
# Containers that the schemas forbid to be empty.
_PRUNABLE = words("AlternateContent Choice Fallback controls definedNames externalReferences hyperlinks oleObjects")
_FETCHING_FIELD = re.compile(r"\s*(?:DDE|DDEAUTO|INCLUDE\w*|IMPORT|LINK|HYPERLINK(?!\s*\\l))\b", re.IGNORECASE)
_EXTERNAL_FORMULA = re.compile(r"(?<![\w\]])\[\d+\]|\|'[^']*'!|\b(?:WEBSERVICE|HYPERLINK)\(", re.IGNORECASE)


def disarm_ooxml(data: bytes, removed: Removed) -> bytes:
    """Follow the relationships, starting with the package's own; the result has no part that they do not reach."""
    parts = unpack(data)
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
    return pack({"[Content_Types].xml": types, **kept})


def _clean_relationships(parts: Parts, name: str, source: str, removed: Removed) -> tuple[bytes, list[str], set[str]]:
    """Return the part without unwanted relationships, the parts that the rest lead to, and the ids gone."""
    root = parse(parts[name], removed)
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
    return serialise(root), targets, gone


def _why_dropped(relationship: Element, content: bytes | None) -> str | None:
    kind: str = relationship.get("Type", "").rpartition("/")[2]
    if relationship.get("TargetMode") == "External":
        return "external link"
    if kind in _DROPPED_RELATIONSHIPS:
        return kind
    if content is None:
        return "dangling link"
    return "foreign content" if content.startswith(FOREIGN_MAGIC) else None


def _clean_ooxml_part(name: str, content: bytes, gone: set[str], removed: Removed) -> bytes:
    if not name.endswith((".xml", ".vml")):
        return clean_media(name, content, removed)
    root = parse(content, removed)
    for element in list(root.iter("*")):
        _scrub_ooxml_element(element, gone, removed)
    return serialise(root)


def _scrub_ooxml_element(element: Element, gone: set[str], removed: Removed) -> None:
    name = etree.QName(element).localname
    lost = [key for key, value in element.items() if value in gone and "/relationships}" in key]
    if lost:
        _drop_reference(element, name, lost)
    elif name == "FmlaMacro" or element.get("action", "").startswith(("ppaction://macro", "ppaction://program")):
        drop(element)
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
    """Adjust the place that referred to a removed relationship, so that the part still obeys its schema."""
    parent = element.getparent()
    in_list = parent is not None and etree.QName(parent).localname == "hyperlinks"
    if name in {"blip", "svgBlip"} or (name == "hyperlink" and not in_list):
        for key in lost:
            del element.attrib[key]
    elif name == "oleObj":
        drop(next(element.iterancestors("{*}graphicFrame"), element))
    else:
        _drop_upwards(element)


def _drop_upwards(element: Element) -> None:
    """Take an element out, and then its containers for as long as they are left empty."""
    parent = element.getparent()
    drop(element)
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
    root = parse(data, removed)
    for entry in list(root):
        if entry.get("PartName", "/").lstrip("/") not in {"", *kept}:
            root.remove(entry)
    return serialise(root)
