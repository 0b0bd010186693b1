"""ODF: odt, ods, odp, odg."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from lxml import etree

from disarm.errors import BrokenDocument, UnsupportedDocument
from disarm.markup import drop, parse, serialise
from disarm.packages import FOREIGN_MAGIC, Parts, clean_media, pack, unpack
from disarm.shared import Removed, words

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

ODF_KINDS = {"text": "odt", "spreadsheet": "ods", "presentation": "odp", "graphics": "odg"}
_ODF_DROPPED_FOLDERS = ("Basic/", "Configurations2/", "Dialogs/", "META-INF/", "Scripts/", "Thumbnails/")
_ODF_MEDIA_FOLDERS = words("Fonts Media ObjectReplacements Pictures")
_ODF_DROPPED_ELEMENTS = words("""
    applet auto-reload cell-range-source dde-connection dde-connection-decls dde-link dde-links dde-source
    event-listener event-listeners execute-macro floating-frame object-ole plugin script scripts
    section-source table-source
""")
_OUTSIDE_FORMULA = re.compile(r"'(?:[a-z]+:|\.\.)[^']*'#|\b(?:DDE|WEBSERVICE|HYPERLINK)\(", re.IGNORECASE)


def disarm_odf(data: bytes, removed: Removed) -> bytes:
    """Keep the parts that the manifest lists and that have a use; the result has no others."""
    parts = unpack(data)
    if "META-INF/manifest.xml" not in parts or "content.xml" not in parts:
        raise BrokenDocument("damaged package: no manifest or no content")
    manifest = parse(parts["META-INF/manifest.xml"], removed)
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
    return pack(kept | {"META-INF/manifest.xml": serialise(manifest)})


def _attribute(element: Element, name: str) -> str:
    return next((value for key, value in element.items() if etree.QName(key).localname == name), "")


def _has_use(name: str, content: bytes) -> bool:
    folder = posixpath.basename(posixpath.dirname(name))
    known = name.endswith((".xml", ".rdf")) or folder in _ODF_MEDIA_FOLDERS
    return known and not name.startswith(_ODF_DROPPED_FOLDERS) and not content.startswith(FOREIGN_MAGIC)


def _clean_odf_part(name: str, content: bytes, removed: Removed) -> bytes:
    if not name.endswith((".xml", ".rdf")):
        return clean_media(name, content, removed)
    root = parse(content, removed)
    for element in list(root.iter("*")):
        _scrub_odf_element(element, posixpath.dirname(name), removed)
    etree.strip_tags(root, _UNWRAPPED)
    return serialise(root)


_UNWRAPPED = "unwrapped"
"""The name of elements that go while their content stays."""


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
    """Whether it leaves the package; a chart's own part may refer to its document, `..`."""
    path = posixpath.normpath(posixpath.join(folder, reference))
    return not reference.startswith("#") and (":" in reference or path.startswith(("/", "..")))


def _drop_odf_element(element: Element) -> None:
    """Remove an element; a hidden table with an external formula's last values goes with its source."""
    table = element.getparent()
    if etree.QName(element).localname == "table-source" and "'#" in _attribute(table, "name"):
        drop(table)
    drop(element)


def _drop_odf_link(element: Element, name: str, key: str) -> None:
    if name == "a":
        element.attrib.clear()
        element.tag = _UNWRAPPED
    elif name == "form":
        del element.attrib[key]
    else:
        drop(element)
