"""XML, SVG and XHTML too, parsed and serialised with lxml. Packages consist of it as well."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lxml import etree

from disarm.errors import BrokenDocument
from disarm.shared import Removed, words

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

_ACTIVE = words("applet base embed foreignobject frame iframe object")
_REFERENCES = words("action background data formaction href poster src srcset")
_PASSIVE_DATA = re.compile(r"#|data:image/(?:png|jpeg|gif|webp)[;,]|$", re.IGNORECASE)
_FOLLOWED = re.compile(r"#|https?:|mailto:|[^:]*$", re.IGNORECASE)
_FETCHING_STYLE = re.compile(
    r"@import[^;]*;?|expression\s*\([^)]*\)|url\(\s*(?![\"']?\s*(?:#|data:image/))[^)]*\)", re.IGNORECASE
)


def disarm_xml(data: bytes, removed: Removed) -> bytes:
    """Return the clean document."""
    root = parse(data, removed)
    if etree.QName(root).localname.lower() == "script":
        raise BrokenDocument("nothing would be left: the whole document is a script")
    for element in list(root.iter("*")):
        _scrub_element(element, removed)
    return serialise(root)


def parse(data: bytes, removed: Removed) -> Element:
    """Return the root of the document, which holds no comments and no processing instructions."""
    # The parser expands entities, but reads no files and hosts that they name. huge_tree raises libxml2's limits
    # as far as possible: newer versions still refuse to expand without measure, and lxml cannot allow it.
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


def serialise(root: Element) -> bytes:
    """Return the document of this root, in UTF-8."""
    # The root and not its tree: the tree would bring the DTD along.
    clean: bytes = etree.tostring(root, encoding="UTF-8", standalone=True)
    return clean


def _scrub_element(element: Element, removed: Removed) -> None:
    tag = etree.QName(element)
    name = tag.localname.lower()
    # Browsers act on SVG and XHTML. In other vocabularies the same names are harmless.
    acted_on = (tag.namespace or "").endswith(("/svg", "/xhtml"))
    if name == "script" or (acted_on and (name in _ACTIVE or _aims_at_link(element))):
        drop(element)
        removed["script" if name == "script" else "active element"] += 1
    elif acted_on:
        _scrub_attributes(element, name, removed)
        if name == "style" and element.text and _FETCHING_STYLE.search(element.text):
            element.text = _FETCHING_STYLE.sub("", element.text)
            removed["style that fetches"] += 1


def _aims_at_link(element: Element) -> bool:
    """Whether it is an SVG animation of a link's target, or a page's redirection."""
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


def drop(element: Element) -> None:
    """Remove an element, and keep the text that follows it."""
    parent, before, tail = element.getparent(), element.getprevious(), element.tail
    if parent is None:  # removed before, with an element around it
        return
    if tail and before is not None:
        before.tail = (before.tail or "") + tail
    elif tail:
        parent.text = (parent.text or "") + tail
    parent.remove(element)
