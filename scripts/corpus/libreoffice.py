"""Documents that LibreOffice writes: Office, ODF, and PDF and XML beside them."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from corpus.ingredients import jpeg, large_photo, picture
from corpus.office import Office, store
from corpus.office_content import add_macro, add_vba, draw_page, fill_sheet, sized, write_report
from corpus.recipe import OURS, PHOTO, Recipes
from corpus.workshop import BUILD, OUT, run

OFFICE = Office()
"""The one that runs while the documents are made."""

recipes = Recipes()

WRITER, CALC, IMPRESS, DRAW = (f"private:factory/{name}" for name in ("swriter", "scalc", "simpress", "sdraw"))
LIBREOFFICE = "libreoffice-core-nogui"
PICTURED = f"{OURS}; {PHOTO['coffee']}; {PHOTO['chelsea']}"
SLIDES = f"{PICTURED}; {PHOTO['camera']}"


def beside(name: str, holds: str, licence: str = PICTURED) -> None:
    """Add a document that another function writes along with its own."""
    recipes.add(name, LIBREOFFICE, f"By LibreOffice: {holds}.", licence, lambda _target: None)


@recipes.document("odf/libreoffice-report.odt", LIBREOFFICE, licence=PICTURED)
def libreoffice_report(target: Path) -> None:
    """By LibreOffice: text, a table, photographs, a link to the web."""
    with OFFICE.opened(WRITER) as made:
        write_report(OFFICE, made, [picture("chelsea"), jpeg("coffee")])
        store(made, target, "writer8")
        store(made, OUT / "office/libreoffice-report.docx", "MS Word 2007 XML")
        store(made, OUT / "pdf/libreoffice-report.pdf", "writer_pdf_Export", UseTaggedPDF=True, ExportBookmarks=True)
        store(made, OUT / "pdf/libreoffice-hybrid.pdf", "writer_pdf_Export", IsAddStream=True)
        store(made, OUT / "xml/libreoffice-report.xhtml", "XHTML Writer File")


beside("office/libreoffice-report.docx", "text, a table, photographs, a link to the web")
beside("pdf/libreoffice-report.pdf", "tagged text, photographs, bookmarks, a link to the web")
beside("pdf/libreoffice-hybrid.pdf", "**the ODF source embedded** (a hybrid PDF)")
beside("xml/libreoffice-report.xhtml", "a document type declaration, styles, photographs as data")


@recipes.document("odf/libreoffice-macro.odt", LIBREOFFICE)
def libreoffice_macro(target: Path) -> None:
    """By LibreOffice: **a Basic macro that runs on opening**."""
    with OFFICE.opened(WRITER) as made:
        write_report(OFFICE, made, [])
        add_macro(made, "OnLoad")
        store(made, target, "writer8")
        store(made, OUT / "xml/libreoffice-macro.fodt", "OpenDocument Text Flat XML")


beside("xml/libreoffice-macro.fodt", "a text in one XML file, **a Basic macro that runs on opening**", OURS)


@recipes.document("odf/libreoffice-object.odt", LIBREOFFICE, licence=f"{OURS}; {PHOTO['china']}")
def libreoffice_object(target: Path) -> None:
    """By LibreOffice: an embedded spreadsheet, a photograph at a camera's size."""
    photo = BUILD / "photo.jpg"
    run("convert", large_photo(1600), "-quality", "85", photo)
    with OFFICE.opened(WRITER) as made:
        write_report(OFFICE, made, [photo])
        sheet = made.createInstance("com.sun.star.text.TextEmbeddedObject")
        sheet.CLSID = "47BBB4CB-CE4C-4E80-a591-42d9ae74950f"  # Calc's
        made.Text.insertTextContent(made.Text.createTextCursor(), sheet, False)
        shown = sheet.ExtendedControlOverEmbeddedObject
        shown.changeState(1)  # running, else it has no component yet
        shown.Component.Sheets.getByIndex(0).getCellByPosition(0, 0).String = "embedded"
        store(made, target, "writer8")
        store(made, OUT / "office/libreoffice-object.docx", "MS Word 2007 XML")


beside("office/libreoffice-object.docx", "**an embedded spreadsheet**, a photograph at a camera's size", PHOTO["china"])


@recipes.document("odf/libreoffice-sheet.ods", LIBREOFFICE)
def libreoffice_sheet(target: Path) -> None:
    """By LibreOffice: 2,000 rows with formulas, a chart."""
    with OFFICE.opened(CALC) as made:
        fill_sheet(made.Sheets.getByIndex(0), 2000)
        store(made, target, "calc8")
        store(made, OUT / "office/libreoffice-sheet.xlsx", "Calc MS Excel 2007 XML")
        store(made, OUT / "pdf/libreoffice-sheet.pdf", "calc_pdf_Export")


beside("office/libreoffice-sheet.xlsx", "2,000 rows with formulas, a chart", OURS)
beside("pdf/libreoffice-sheet.pdf", "a long table on many pages, a chart", OURS)


@recipes.document("odf/libreoffice-links.ods", LIBREOFFICE)
def libreoffice_links(target: Path) -> None:
    """By LibreOffice: **formulas that look into another file, with what they last saw; a macro**."""
    prices = BUILD / "prices.ods"
    with OFFICE.opened(CALC) as made:
        fill_sheet(made.Sheets.getByIndex(0), 20)
        store(made, prices, "calc8")
    with OFFICE.opened(CALC) as made:
        sheet = made.Sheets.getByIndex(0)
        for row in range(10):
            sheet.getCellByPosition(0, row).setFormula(f"='file://{prices}'#$Sheet1.B{row + 2}*2")
        add_macro(made, "OnPrepareUnload")
        store(made, target, "calc8")
        store(made, OUT / "office/libreoffice-links.xlsx", "Calc MS Excel 2007 XML")


beside("office/libreoffice-links.xlsx", "**formulas that look into another file, with what they last saw**", OURS)


@recipes.document("odf/libreoffice-slides.odp", LIBREOFFICE, licence=SLIDES)
def libreoffice_slides(target: Path) -> None:
    """By LibreOffice: four slides, shapes, photographs."""
    with OFFICE.opened(IMPRESS) as made:
        for number in range(4):
            page = made.DrawPages.insertNewByIndex(number) if number else made.DrawPages.getByIndex(0)
            draw_page(OFFICE, made, page, number)
        store(made, target, "impress8")
        store(made, OUT / "office/libreoffice-slides.pptx", "Impress MS PowerPoint 2007 XML")
        store(made, OUT / "xml/libreoffice-slides.svg", "impress_svg_Export")
        store(made, OUT / "pdf/libreoffice-slides.pdf", "impress_pdf_Export")


beside("office/libreoffice-slides.pptx", "four slides, shapes, photographs", SLIDES)
beside("xml/libreoffice-slides.svg", "**the script of a slide show**, photographs as data", SLIDES)
beside("pdf/libreoffice-slides.pdf", "four slides", SLIDES)


@recipes.document("odf/libreoffice-small.odp", LIBREOFFICE)
def libreoffice_small(target: Path) -> None:
    """By LibreOffice: one slide."""
    with OFFICE.opened(IMPRESS) as made:
        shape = made.createInstance("com.sun.star.drawing.TextShape")
        made.DrawPages.getByIndex(0).add(sized(shape, (2000, 2000), (9000, 3000)))
        shape.String = "One slide"
        store(made, target, "impress8")


@recipes.document("odf/libreoffice-drawing.odg", LIBREOFFICE, licence=PHOTO["chelsea"])
def libreoffice_drawing(target: Path) -> None:
    """By LibreOffice: shapes, a photograph."""
    with OFFICE.opened(DRAW) as made:
        draw_page(OFFICE, made, made.DrawPages.getByIndex(0), 1)
        store(made, target, "draw8")
        store(made, OUT / "xml/libreoffice-drawing.svg", "draw_svg_Export")


beside("xml/libreoffice-drawing.svg", "shapes, embedded fonts, a photograph as data", PHOTO["chelsea"])


@recipes.document("odf/libreoffice-graph.odg", LIBREOFFICE)
def libreoffice_graph(target: Path) -> None:
    """By LibreOffice: a drawing read from SVG."""
    with OFFICE.opened(f"file://{BUILD}/out/xml/graphviz-graph.svg") as made:
        store(made, target, "draw8")


@recipes.document("office/libreoffice-macro.xlsm", LIBREOFFICE)
def libreoffice_vba(target: Path) -> None:
    """By LibreOffice: **a VBA project**."""
    with OFFICE.opened(CALC) as made:
        add_vba(made)
        fill_sheet(made.Sheets.getByIndex(0), 60)
        store(made, target, "Calc MS Excel 2007 VBA XML")


@recipes.document("office/libreoffice-macro.docm", LIBREOFFICE)
def libreoffice_docm(target: Path) -> None:
    """By LibreOffice: **a VBA project**, that of the workbook, written once more by LibreOffice."""
    with zipfile.ZipFile(OUT / "office/libreoffice-macro.xlsm") as workbook:
        project = workbook.read("xl/vbaProject.bin")
    draft = BUILD / "draft.docm"
    with OFFICE.opened(WRITER) as made:
        write_report(OFFICE, made, [])
        store(made, draft, "MS Word 2007 XML")
    put_vba_project(draft, project)
    with OFFICE.opened(f"file://{draft}") as made:
        store(made, target, "MS Word 2007 XML VBA")


def put_vba_project(package: Path, project: bytes) -> None:
    """Put a VBA project into a text document, and name it where the package lists its parts."""
    macro = b"application/vnd.ms-word.document.macroEnabled.main+xml"
    plain = b"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    default = b'<Default Extension="bin" ContentType="application/vnd.ms-office.vbaProject"/></Types>'

    def typed(types: bytes) -> bytes:
        return types.replace(plain, macro).replace(b"</Types>", default)

    def related(rels: bytes) -> bytes:
        kind = b"http://schemas.microsoft.com/office/2006/relationships/vbaProject"  # a name, not an address
        entry = b'<Relationship Id="rIdVba" Type="%s" Target="vbaProject.bin"/></Relationships>' % kind
        return rels.replace(b"</Relationships>", entry)

    changes = {"[Content_Types].xml": typed, "word/_rels/document.xml.rels": related}
    rewrite(package, changes, {"word/vbaProject.bin": project})


def rewrite(package: Path, changes: dict[str, Callable[[bytes], bytes]], added: dict[str, bytes]) -> None:
    """Change members of a ZIP package in place, and add others."""
    with zipfile.ZipFile(package) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members |= {name: change(members[name]) for name, change in changes.items()}
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in (members | added).items():
            new.writestr(name, content)
