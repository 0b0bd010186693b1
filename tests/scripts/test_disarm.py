"""The content-disarm worker in scripts/examples, without a sandbox: its interface, what the corpus does not hold, attacks."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import zipfile
import zlib
from pathlib import Path

import pytest
from active_content import active_in_pdf, active_in_xml, members, metadata_of
from documents import (
    CORPUS,
    DOCUMENTS,
    IMAGES,
    Image,
    cleaned,
    disarm,
    disarmed,
    etree,
    hostile_documents,
    of_kind,
    pikepdf,
)

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
