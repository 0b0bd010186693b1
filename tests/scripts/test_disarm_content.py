"""Documents of the corpus after the content-disarm worker: nothing active is left, and what people see stays."""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from active_content import active_content, members
from documents import (
    CORPUS,
    DOCUMENTS,
    IMAGES,
    ODF,
    OOXML,
    Image,
    ImageChops,
    ImageOps,
    ImageSequence,
    ImageStat,
    cleaned,
    disarm,
    each,
    etree,
    kind_by_name,
    of_kind,
    pikepdf,
)

HOLDS = {
    "pdf/pdftex-active.pdf": {"/JavaScript", "/JS", "/OpenAction", "/EmbeddedFiles", "/EF", "/Launch"},
    "pdf/pdftex-article.pdf": {"/URI"},
    "pdf/pdftex-slides.pdf": {"/Named"},
    "pdf/libreoffice-hybrid.pdf": {"/AdditionalStreams"},
    "images/exif-gps.jpg": {"exif", "ns.adobe.com/xap", "comment", "Somebody", "A comment", "Exif\0\0"},
    "images/cwebp-photo.webp": {"exif"},
    "images/imagemagick-animation.gif": {"comment"},
    "images/matplotlib-plot.png": {"text", "Somebody"},
    "images/astronaut.png": {"icc_profile"},
    "office/libreoffice-macro.docm": {"vbaProject.bin"},
    "office/libreoffice-macro.xlsm": {"vbaProject.bin"},
    "office/libreoffice-object.docx": {"embeddings"},
    "office/libreoffice-links.xlsx": {"externalLinks", "External", "external formula"},
    "office/libreoffice-report.docx": {"External"},
    "odf/libreoffice-macro.odt": {"Basic", "event-listener"},
    "odf/libreoffice-links.ods": {"Basic", "external link"},
    "odf/libreoffice-report.odt": {"external link", "Thumbnails"},
    "xml/graphviz-script.svg": {"script", "handler", "DTD", "processing instruction"},
    "xml/gnuplot-mouse.svg": {"script", "handler"},
    "xml/libreoffice-slides.svg": {"script"},
    "xml/libreoffice-macro.fodt": {"script"},
}


@pytest.mark.parametrize("name", HOLDS)
def test_originals_hold_what_is_to_go(name: str) -> None:
    path = CORPUS / name
    assert active_content(path.read_bytes(), kind_by_name(path)) >= HOLDS[name]


@each(DOCUMENTS)
def test_nothing_active_is_left(path: Path) -> None:
    assert active_content(cleaned(path), kind_by_name(path)) == set()


# --- what stays --------------------------------------------------------------------------------------------


@each(DOCUMENTS)
def test_kind_is_told_from_content_and_stays(path: Path) -> None:
    assert disarm.document_kind(path.read_bytes()) == kind_by_name(path)
    assert disarm.document_kind(cleaned(path)) == kind_by_name(path)


@each(DOCUMENTS)
def test_clean_document_has_nothing_more_to_remove(path: Path, tmp_path: Path) -> None:
    once = tmp_path / path.name
    once.write_bytes(cleaned(path))
    summary = disarm.disarm_file(once, tmp_path / "twice")
    assert summary == f"{kind_by_name(path)}: removed nothing"


def complaints(pdf: Any) -> set[str]:
    """What is wrong with it by qpdf, which names the file before each."""
    found = pdf.check_pdf_syntax() if hasattr(pdf, "check_pdf_syntax") else pdf.check()
    return {text.rpartition(": ")[2] for text in found}


@each(of_kind("pdf"))
def test_pdf_keeps_its_pages(path: Path) -> None:
    with pikepdf.open(path) as old, pikepdf.open(io.BytesIO(cleaned(path))) as new:
        assert len(new.pages) == len(old.pages) > 0
        for before, after in list(zip(old.pages, new.pages, strict=True))[:20]:
            before.contents_coalesce()
            after.contents_coalesce()
            assert after.Contents.read_bytes() == before.Contents.read_bytes()
        assert complaints(new) <= complaints(old)


def shown(frame: Any) -> Any:
    """The frame as a viewer shows it: turned as it asks, and on white where it is transparent."""
    turned = ImageOps.exif_transpose(frame).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned).convert("RGB")


@each(of_kind(*IMAGES))
def test_image_keeps_its_pixels_and_frames(path: Path) -> None:
    lossy = 0.25 if path.suffix in {".jpg", ".webp", ".gif"} and "lossless" not in path.name else 0
    with Image.open(path) as old, Image.open(io.BytesIO(cleaned(path))) as new:
        assert new.format == old.format
        assert getattr(new, "n_frames", 1) == getattr(old, "n_frames", 1)
        for before, after in zip(ImageSequence.Iterator(old), ImageSequence.Iterator(new), strict=True):
            difference = ImageStat.Stat(ImageChops.difference(shown(before), shown(after))).mean
            assert max(difference) <= lossy * max(ImageStat.Stat(shown(before)).stddev)


def test_animation_keeps_its_timing() -> None:
    path = CORPUS / "images/imagemagick-animation.gif"
    with Image.open(path) as old, Image.open(io.BytesIO(cleaned(path))) as new:
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(new)] == [120] * old.n_frames
        assert new.info["loop"] == 0


VISIBLE = re.compile(
    r"(?:.*/)?content\.xml"
    r"|(?:word|xl|ppt)/(?:document|sharedStrings|worksheets/sheet\d+|slides/slide\d+|charts/chart\d+)\.xml"
)


def words_in(content: bytes) -> list[str]:
    """The text, and the formulas that do not look into another file."""
    root = etree.fromstring(content)
    for formula in root.iter("{*}f"):
        formula.text = re.sub(r".*\[\d+\].*", "", formula.text or "")
    return " ".join(root.itertext()).split()


@each(of_kind(*OOXML, *ODF))
def test_package_keeps_its_text_and_charts(path: Path) -> None:
    old, new = members(path.read_bytes()), members(cleaned(path))
    texts = [name for name in old if VISIBLE.fullmatch(name)]
    assert sum(len(words_in(old[name])) for name in texts) > 0
    for name in texts:
        assert words_in(new[name]) == words_in(old[name])


def test_chart_of_a_spreadsheet_stays() -> None:
    chart = etree.fromstring(members(cleaned(CORPUS / "odf/libreoffice-sheet.ods"))["Chart/content.xml"])
    assert next(chart.iter("{*}chart")) is not None
    assert len(list(chart.iter("{*}series"))) == 2


def test_what_another_file_last_said_stays() -> None:
    links = CORPUS / "office/libreoffice-links.xlsx"
    sheet = "xl/worksheets/sheet1.xml"
    old, new = (etree.fromstring(members(data)[sheet]) for data in (links.read_bytes(), cleaned(links)))
    assert not list(new.iter("{*}f"))
    assert [cell.text for cell in new.iter("{*}v")] == [cell.text for cell in old.iter("{*}v")] != []


@each(of_kind(*OOXML))
def test_ooxml_package_agrees_with_itself(path: Path) -> None:
    parts = members(cleaned(path))
    for entry in etree.fromstring(parts["[Content_Types].xml"]).iter("{*}Override"):
        assert entry.get("PartName").lstrip("/") in parts
    for name in [name for name in parts if name.endswith(".rels")]:
        source = posixpath.join(posixpath.dirname(posixpath.dirname(name)), posixpath.basename(name)[: -len(".rels")])
        relationships = {item.get("Id"): item for item in etree.fromstring(parts[name])}
        for item in relationships.values():
            target = posixpath.join("/", posixpath.dirname(source), item.get("Target"))
            assert posixpath.normpath(target).lstrip("/") in parts
        assert references(parts.get(source)) <= relationships.keys()


def references(part: bytes | None) -> set[str]:
    """The relationships that a part asks for."""
    if not part or not part.startswith(b"<"):
        return set()
    elements = etree.fromstring(part).iter("*")
    return {value for element in elements for key, value in element.items() if "/relationships}" in key and value}


@each(of_kind(*ODF))
def test_odf_package_agrees_with_itself(path: Path) -> None:
    data = cleaned(path)
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        first = package.infolist()[0]
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
    parts = members(data)
    manifest = etree.fromstring(parts["META-INF/manifest.xml"])
    listed = {value for entry in manifest for key, value in entry.items() if key.endswith("}full-path")}
    assert {name for name in listed if not name.endswith("/")} == parts.keys() - {
        "mimetype",
        "META-INF/manifest.xml",
    }


@each(of_kind("xml"))
def test_xml_loses_nothing_but_scripts(path: Path) -> None:
    parser = etree.XMLParser(huge_tree=True, remove_comments=True, remove_pis=True)
    old, new = etree.fromstring(path.read_bytes(), parser), etree.fromstring(cleaned(path))
    scripts = [script for script in old.iter("{*}script") if script.getparent() is not None]
    inside = {element for script in scripts for element in script.iter("*")}
    kept = [element.tag for element in old.iter("*") if element not in inside]
    assert [element.tag for element in new.iter("*")] == kept
