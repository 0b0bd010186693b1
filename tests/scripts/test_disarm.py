"""The content-disarm worker in scripts/examples, over the corpus of real documents and without a sandbox.

What is active in a document is found here by code of its own, which shares nothing with the worker's. It has
to find what the originals are known to hold; only then does its silence about the clean ones mean anything.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pickle
import posixpath
import re
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

pikepdf = pytest.importorskip("pikepdf")
etree = pytest.importorskip("lxml.etree")
Image = pytest.importorskip("PIL.Image")
ImageChops = pytest.importorskip("PIL.ImageChops")
ImageOps = pytest.importorskip("PIL.ImageOps")
ImageSequence = pytest.importorskip("PIL.ImageSequence")
ImageStat = pytest.importorskip("PIL.ImageStat")

TESTS = Path(__file__).resolve().parents[1]
CORPUS = TESTS / "corpus"
sys.path.insert(0, str(TESTS.parent / "scripts" / "examples"))
disarm = importlib.import_module("disarm")
hostile_documents = importlib.import_module("hostile_documents")

DOCUMENTS = sorted(CORPUS.glob("*/*"))
IMAGES = ("png", "jpeg", "gif", "tiff", "webp", "bmp")
OOXML = ("docx", "docm", "xlsx", "xlsm", "pptx", "pptm")
ODF = ("odt", "ods", "odp", "odg")
KINDS = {".jpg": "jpeg", ".tif": "tiff", ".svg": "xml", ".xhtml": "xml", ".conf": "xml", ".fodt": "xml"}


def kind_by_name(path: Path) -> str:
    return KINDS.get(path.suffix, path.suffix.lstrip("."))


def of_kind(*kinds: str) -> list[Path]:
    return [path for path in DOCUMENTS if kind_by_name(path) in kinds]


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}/{path.name}")


_CLEAN: dict[Path, bytes] = {}


def cleaned(path: Path) -> bytes:
    """The clean document; each is made once."""
    if path not in _CLEAN:
        _CLEAN[path] = disarm.disarm_bytes(path)
    return _CLEAN[path]


def disarmed(data: bytes, folder: Path) -> bytes:
    source = folder / "input"
    source.write_bytes(data)
    clean: bytes = disarm.disarm_bytes(source)
    return clean


# --- what is active in a document --------------------------------------------------------------------------


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


# --- the interface -----------------------------------------------------------------------------------------


def test_file_to_file_says_what_was_removed_and_leaves_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "clean.docm"
    summary = disarm.disarm_file(str(CORPUS / "office/libreoffice-macro.docm"), str(target))
    assert summary.startswith("docm: removed ")
    assert "1 vbaProject" in summary
    assert "\n" not in summary
    assert target.read_bytes() == cleaned(CORPUS / "office/libreoffice-macro.docm")
    assert list(target.parent.iterdir()) == [target]


def test_broken_document_leaves_the_target_alone(tmp_path: Path) -> None:
    source, target = tmp_path / "cut.png", tmp_path / "clean.png"
    source.write_bytes((CORPUS / "images/astronaut.png").read_bytes()[:5000])
    target.write_bytes(b"as it was")
    with pytest.raises(disarm.BrokenDocument, match="truncated"):
        disarm.disarm_file(source, target)
    assert target.read_bytes() == b"as it was"
    assert sorted(tmp_path.iterdir()) == [target, source]


@pytest.mark.parametrize("error", [disarm.UnsupportedDocument, disarm.BrokenDocument])
def test_errors_survive_the_way_out_of_a_guest(error: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(error("what is wrong")))
    assert type(copy) is error
    assert str(copy) == "what is wrong"


def zipped(**parts: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as package:
        for name, content in parts.items():
            package.writestr(name, content)
    return out.getvalue()


def encrypted_pdf() -> bytes:
    out = io.BytesIO()
    with pikepdf.new() as pdf:
        pdf.add_blank_page()
        pdf.save(out, encryption=pikepdf.Encryption(owner="o", user="u"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no known kind"),
        (b"plain text", "no known kind"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "OLE2"),
        (zipped(readme=b"text"), "ZIP archive that is no"),
        (encrypted_pdf(), "password"),
    ],
    ids=["empty", "text", "ole2", "zip", "encrypted"],
)
def test_unsupported_documents_say_so(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(disarm.UnsupportedDocument, match=message):
        disarmed(data, tmp_path)


# --- what the corpus does not hold -------------------------------------------------------------------------

SVG = "http://www.w3.org/2000/svg"
XHTML = "http://www.w3.org/1999/xhtml"


@pytest.mark.parametrize(
    ("document", "gone"),
    [
        (f'<svg xmlns="{SVG}"><a href=" java\tscript:x()">t</a></svg>', "script:"),
        (f'<svg xmlns="{SVG}"><a><set attributeName="href" to="javascript:x()"/></a></svg>', "javascript"),
        (f'<svg xmlns="{SVG}"><image href="data:image/svg+xml,x"/></svg>', "svg+xml"),
        (f'<svg xmlns="{SVG}"><use href="//elsewhere/x.svg#a"/></svg>', "elsewhere"),
        (
            f'<svg xmlns="{SVG}"><style>@import "//elsewhere/x.css"; a {{fill: red}}</style></svg>',
            "elsewhere",
        ),
        (f'<svg xmlns="{SVG}"><rect style="fill: url(//elsewhere/x)"/></svg>', "elsewhere"),
        (f'<svg xmlns="{SVG}" ONLOAD="x()"><rect/></svg>', "x()"),
        (f'<html xmlns="{XHTML}"><iframe src="//elsewhere/"/></html>', "elsewhere"),
        (f'<html xmlns="{XHTML}"><meta http-equiv="Refresh" content="0;elsewhere"/></html>', "elsewhere"),
        (f'<html xmlns="{XHTML}"><form action="//elsewhere/"/></html>', "elsewhere"),
        (f'<html xmlns="{XHTML}"><iframe srcdoc="elsewhere"/></html>', "elsewhere"),
        (f'<html xmlns="{XHTML}"><object><param value="elsewhere"/></object></html>', "elsewhere"),
        ("<a><?php elsewhere() ?></a>", "elsewhere"),
        ("<a><!-- elsewhere --></a>", "elsewhere"),
        ('<a xmlns:x="urn:x"><x:script>elsewhere()</x:script></a>', "elsewhere"),
    ],
)
def test_active_xml_is_taken_out(document: str, gone: str, tmp_path: Path) -> None:
    assert gone.encode() in document.encode()
    assert gone.encode() not in disarmed(document.encode(), tmp_path)


def test_text_between_scripts_stays(tmp_path: Path) -> None:
    clean = disarmed(b"<a>one<script/>two<b/>three<script/>four<script/>five</a>", tmp_path)
    assert clean.endswith(b"<a>onetwo<b/>threefourfive</a>")


def test_other_vocabularies_keep_names_that_browsers_act_on(tmp_path: Path) -> None:
    document = b'<order xmlns="urn:o"><object on="x" href="//elsewhere/">t</object></order>'
    assert disarmed(document, tmp_path).endswith(document)


def test_internal_entities_are_resolved(tmp_path: Path) -> None:
    clean = disarmed(b'<!DOCTYPE a [<!ENTITY e "inside">]><a>&e;</a>', tmp_path)
    assert clean.endswith(b"<a>inside</a>")


def test_entities_read_no_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    document = f'<!DOCTYPE a [<!ENTITY e SYSTEM "{secret.as_uri()}">]><a>&e;</a>'
    # Newer libxml2: an entity that is not read is an undefined one.
    with contextlib.suppress(disarm.BrokenDocument):
        assert b"secret" not in disarmed(document.encode(), tmp_path)


def pdf_with_hidden_actions() -> bytes:
    out = io.BytesIO()
    with pikepdf.new() as pdf:
        page = pdf.add_blank_page()
        note = pikepdf.AttachedFileSpec(pdf, b"hidden", filename="hidden.txt").obj
        script = pikepdf.Dictionary(S=pikepdf.Name.JavaScript, JS="x()")
        goto = pikepdf.Dictionary(S=pikepdf.Name.GoTo, D=pikepdf.Array([page.obj]), Next=pikepdf.Array([script]))
        attached = pikepdf.Dictionary(Type=pikepdf.Name.Annot, Subtype=pikepdf.Name.FileAttachment, FS=note)
        link = pikepdf.Dictionary(Type=pikepdf.Name.Annot, Subtype=pikepdf.Name.Link, A=goto)
        page.LastModifiedBy = note  # of no use to any viewer, but it leads to the file
        page.AA = pikepdf.Dictionary(O=script)
        page.Annots = pikepdf.Array([attached, pdf.make_indirect(link)])
        pdf.Root.AcroForm = pikepdf.Dictionary(XFA=pikepdf.Array(["form", pdf.make_stream(b"<xfa/>")]))
        pdf.save(out)
    return out.getvalue()


def test_hidden_pdf_actions_attachments_and_forms_are_taken_out(tmp_path: Path) -> None:
    data = pdf_with_hidden_actions()
    assert set(active_in_pdf(data)) >= {"/JavaScript", "/XFA", "/EF", "/EmbeddedFile"}
    clean = disarmed(data, tmp_path)
    assert active_in_pdf(clean) == []
    with pikepdf.open(io.BytesIO(clean)) as pdf:
        (link,) = pdf.pages[0].Annots
        assert str(link.A.S) == "/GoTo"


def test_foreign_content_behind_an_innocent_relationship_is_taken_out(tmp_path: Path) -> None:
    parts = members((CORPUS / "office/pandoc-report.docx").read_bytes())
    picture = next(name for name in parts if name.startswith("word/media/"))
    parts |= {picture: b"\xd0\xcf\x11\xe0 a compound file", "word/stray.bin": b"not referred to"}
    clean = members(disarmed(zipped(**parts), tmp_path))
    assert picture in parts
    assert not {picture, "word/stray.bin"} & clean.keys()


def with_part(document: str, name: str, change: tuple[bytes, bytes]) -> bytes:
    """A document of the corpus with some text in one part put in the place of other text."""
    parts = members((CORPUS / document).read_bytes())
    assert change[0] in parts[name]
    return zipped(**parts | {name: parts[name].replace(*change, 1)})


@pytest.mark.parametrize(
    "active",
    [
        b"<text:dde-connection office:name='elsewhere'>value</text:dde-connection>",
        b"<text:execute-macro text:name='elsewhere'>value</text:execute-macro>",
        b"<text:script>elsewhere</text:script>",
        b"<text:section text:name='s'><text:section-source text:section-name='elsewhere'/></text:section>",
        b"<draw:frame><draw:object-ole draw:class-id='elsewhere'/></draw:frame>",
        b"<draw:frame><draw:plugin draw:mime-type='elsewhere'/></draw:frame>",
        b"<draw:frame><draw:image xlink:href='../elsewhere'/></draw:frame>",
        b"<office:forms><form:form xlink:href='//elsewhere/'/></office:forms>",
    ],
    ids=lambda active: re.findall(rb"[a-z]+:([a-z-]+)", active)[0].decode(),
)
def test_active_elements_of_odf_are_taken_out(active: bytes, tmp_path: Path) -> None:
    data = with_part("odf/libreoffice-report.odt", "content.xml", (b"</office:text>", active + b"</office:text>"))
    content = members(disarmed(data, tmp_path))["content.xml"]
    assert b"elsewhere" not in content
    assert b"A link to the web" in content


def test_text_of_a_link_stays_without_it() -> None:
    old, new = (
        etree.fromstring(members(data)["content.xml"]) for data in original_and_clean("odf/libreoffice-report.odt")
    )
    assert [element.text for element in old.iter("{*}a")] == ["A link to the web"]
    assert not list(new.iter("{*}a"))
    assert all(etree.QName(element).namespace for element in new.iter("*"))
    assert "A link to the web" in "".join(new.itertext())


def original_and_clean(name: str) -> tuple[bytes, bytes]:
    return (CORPUS / name).read_bytes(), cleaned(CORPUS / name)


@pytest.mark.parametrize(
    "active",
    [
        b"<w:p><w:r><w:instrText>DDEAUTO elsewhere</w:instrText></w:r></w:p>",
        b"<w:p><w:r><w:instrText> INCLUDETEXT &quot;elsewhere&quot;</w:instrText></w:r></w:p>",
        b"<w:p><w:fldSimple w:instr=' LINK elsewhere'><w:r/></w:fldSimple></w:p>",
        b"<a:hlinkClick xmlns:a='urn:a' action='ppaction://macro?name=elsewhere'/>",
        b"<xdr:sp xmlns:xdr='urn:x' macro='elsewhere'/>",
        b"<v:shape xmlns:v='urn:v' href='elsewhere'/>",
    ],
)
def test_active_elements_of_ooxml_are_taken_out(active: bytes, tmp_path: Path) -> None:
    data = with_part("office/libreoffice-report.docx", "word/document.xml", (b"</w:body>", active + b"</w:body>"))
    content = members(disarmed(data, tmp_path))["word/document.xml"]
    assert b"elsewhere" not in content
    assert b"A link to the web" in content


def test_slide_loses_the_frame_of_an_embedded_object(tmp_path: Path) -> None:
    frame = b"<a:graphic><a:graphicData><p:oleObj r:id='rIdOle'/></a:graphicData></a:graphic>"
    frame = b"<p:graphicFrame>" + frame + b"</p:graphicFrame>"
    parts = members((CORPUS / "office/libreoffice-slides.pptx").read_bytes())
    slide, rels = "ppt/slides/slide1.xml", "ppt/slides/_rels/slide1.xml.rels"
    parts[slide] = parts[slide].replace(b"</p:spTree>", frame + b"</p:spTree>")
    entry = b'<Relationship Id="rIdOle" Type="urn:r/oleObject" Target="../embeddings/oleObject1.bin"/></Relationships>'
    parts[rels] = parts[rels].replace(b"</Relationships>", entry)
    parts["ppt/embeddings/oleObject1.bin"] = b"\xd0\xcf\x11\xe0"
    clean = members(disarmed(zipped(**parts), tmp_path))
    assert b"oleObj" in parts[slide]
    assert b"graphicFrame" not in clean[slide]
    assert b"rIdOle" not in clean[rels]
    assert "ppt/embeddings/oleObject1.bin" not in clean


def test_pictures_in_a_package_lose_their_metadata(tmp_path: Path) -> None:
    parts = members((CORPUS / "office/pandoc-report.docx").read_bytes())
    picture = next(name for name in parts if name.startswith("word/media/"))
    parts[picture] = (CORPUS / "images/exif-gps.jpg").read_bytes()
    clean = members(disarmed(zipped(**parts), tmp_path))[picture]
    assert metadata_of(parts[picture])
    assert metadata_of(clean) == set()


def test_drawings_in_a_package_lose_their_scripts(tmp_path: Path) -> None:
    parts = members((CORPUS / "odf/libreoffice-report.odt").read_bytes())
    listed = b'<manifest:file-entry manifest:full-path="Pictures/a.svg" manifest:media-type=""/></manifest:manifest>'
    parts["META-INF/manifest.xml"] = parts["META-INF/manifest.xml"].replace(b"</manifest:manifest>", listed)
    parts["Pictures/a.svg"] = (CORPUS / "xml/graphviz-script.svg").read_bytes()
    clean = members(disarmed(zipped(**parts), tmp_path))["Pictures/a.svg"]
    assert active_in_xml(parts["Pictures/a.svg"])
    assert active_in_xml(clean) == set()


def test_encrypted_odf_is_unsupported(tmp_path: Path) -> None:
    change = (b"<manifest:file-entry ", b"<manifest:encryption-data/><manifest:file-entry ")
    with pytest.raises(disarm.UnsupportedDocument, match="password"):
        disarmed(with_part("odf/libreoffice-report.odt", "META-INF/manifest.xml", change), tmp_path)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO((CORPUS / "office/pandoc-report.docx").read_bytes())
    with zipfile.ZipFile(out, "a") as package, pytest.warns(UserWarning, match="Duplicate"):
        package.writestr("word/document.xml", b"<another/>")
    with pytest.raises(disarm.BrokenDocument, match="one name"):
        disarmed(out.getvalue(), tmp_path)


# --- hostile documents -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths: list[Path] = hostile_documents.make_hostile_documents(tmp_path_factory.mktemp("hostile") / "new")
    return {path.name: path for path in paths}


NONSENSE = [name for name, outcomes in hostile_documents.EXPECTED.items() if outcomes == {"FAILED"}]


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused_with_a_reason(name: str, hostile: dict[str, Path]) -> None:
    with pytest.raises(disarm.DisarmError) as caught:
        disarm.disarm_bytes(hostile[name])
    assert re.search(r"damaged|well-formed|no known kind", str(caught.value))
    assert not re.search(r"0x[0-9a-f]{6}|<string>", str(caught.value))


def test_every_hostile_document_has_an_expectation_and_is_small(hostile: dict[str, Path]) -> None:
    assert hostile.keys() == hostile_documents.EXPECTED.keys()
    assert len(hostile) >= 12
    assert max(path.stat().st_size for path in hostile.values()) < 10 * 1024**2


@pytest.mark.parametrize("name", [name for name in NONSENSE if name.startswith(("cut", "flipped"))])
def test_damage_is_the_same_each_time(name: str, hostile: dict[str, Path]) -> None:
    assert hostile_documents.MAKERS[name]() == hostile[name].read_bytes()


def test_bombs_hold_what_they_promise(hostile: dict[str, Path]) -> None:
    with zipfile.ZipFile(hostile["docx-zip-bomb.docx"]) as package:
        part = package.getinfo("word/document.xml")
        assert part.file_size == 8 * 1024**3
        with package.open(part) as start:
            assert start.read(1024) == bytes(1024)
    with Image.open(hostile["png-bomb.png"]) as image:
        assert image.width * image.height == 10**10
    assert hostile_documents.packing.crc_of_zeros(3 * 1024**2) == zlib.crc32(bytes(3 * 1024**2))


# --- the corpus itself -------------------------------------------------------------------------------------


def test_corpus_is_as_large_as_it_may_be() -> None:
    assert len(DOCUMENTS) >= 48
    assert sum(path.stat().st_size for path in DOCUMENTS) < 15_000_000
    for kind in ("pdf", *IMAGES, "docx", "xlsx", "pptx", "odt", "ods", "odp", "odg", "xml"):
        assert len(of_kind(kind)) >= 2, kind


def test_origin_of_every_document_is_stated() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| ([\d,]+) \|", (CORPUS / "ORIGINS.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    stated = {name: int(size.replace(",", "")) for name, size in rows}
    assert stated == {path.relative_to(CORPUS).as_posix(): path.stat().st_size for path in DOCUMENTS}
