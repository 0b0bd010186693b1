"""Office and ODF documents by other programs than LibreOffice."""

from pathlib import Path

from corpus.ingredients import ELSEWHERE, markdown, paragraphs, picture, table_csv
from corpus.recipe import OURS, PHOTO, Recipes
from corpus.workshop import run, written

recipes = Recipes()
_REPORT_LICENCE = f"{OURS}; {PHOTO['coffee']}"
_CAMERA_LICENCE = f"{OURS}; {PHOTO['camera']}"


def pandoc(target: Path, *options: str) -> None:
    """Convert the report; the target's suffix says into what, where no option does."""
    run("pandoc", "-f", "markdown", *options, "-o", target, written("report.md", markdown()))


@recipes.document("office/pandoc-report.docx", "pandoc", licence=_REPORT_LICENCE)
def pandoc_docx(target: Path) -> None:
    """By Pandoc: text, a table, a formula, a photograph, a link to the web."""
    pandoc(target)


@recipes.document("office/pandoc-slides.pptx", "pandoc", licence=_REPORT_LICENCE)
def pandoc_pptx(target: Path) -> None:
    """By Pandoc: slides, a photograph."""
    pandoc(target)


@recipes.document("odf/pandoc-report.odt", "pandoc", licence=_REPORT_LICENCE)
def pandoc_odt(target: Path) -> None:
    """By Pandoc: text, a table, a formula, a photograph."""
    pandoc(target)


@recipes.document("odf/abiword-letter.odt", "abiword")
def abiword_letter(target: Path) -> None:
    """By AbiWord: text."""
    run("abiword", "--to=odt", "-o", target, written("letter.txt", "\n\n".join(paragraphs()[:30])))


@recipes.document("office/python-docx-table.docx", "python3-docx", licence=_CAMERA_LICENCE)
def python_docx(target: Path) -> None:
    """By python-docx: text in styles, a table of 300 rows, a photograph."""
    from docx import Document

    made = Document()
    made.add_heading("A table", 0)
    made.add_picture(str(picture("camera")))
    table = made.add_table(rows=0, cols=3)
    for n in range(300):
        for cell, value in zip(table.add_row().cells, (n, n * n, n**3), strict=True):
            cell.text = str(value)
    made.save(str(target))


@recipes.document("office/xlsxwriter-charts.xlsx", "python3-xlsxwriter")
def xlsxwriter_charts(target: Path) -> None:
    """By XlsxWriter: charts, formats, a table, **links to the web**."""
    import xlsxwriter

    with xlsxwriter.Workbook(str(target)) as book:
        sheet = book.add_worksheet("Data")
        for row in range(500):
            sheet.write_row(row, 0, (row, row**0.5, (row * 37) % 101))
        sheet.add_table(0, 4, 20, 6)
        for n, kind in enumerate(("line", "column", "pie", "scatter")):
            chart = book.add_chart({"type": kind})
            rows = (n * 10 + 1, n * 10 + 10)
            ranges = {"values": "=Data!$C${}:$C${}", "categories": "=Data!$A${}:$A${}"}
            chart.add_series({key: cells.format(*rows) for key, cells in ranges.items()} | {"name": kind})
            sheet.insert_chart(n * 16, 8, chart)
        sheet.write_url(0, 20, ELSEWHERE)
        sheet.write_url(1, 20, "internal:'Data'!A1")


@recipes.document("office/openpyxl-sheets.xlsx", "python3-openpyxl", licence=_CAMERA_LICENCE)
def openpyxl_sheets(target: Path) -> None:
    """By openpyxl: many sheets, a photograph, validation, a comment."""
    import openpyxl
    from openpyxl.comments import Comment
    from openpyxl.drawing.image import Image

    book = openpyxl.Workbook()
    for n in range(12):
        sheet = book.create_sheet(f"Sheet {n}")
        for row in range(200):
            sheet.append([row, row * n, f"=A{row + 1}+B{row + 1}", paragraphs()[row % 30][:50]])
    book.active.add_image(Image(str(picture("camera"))), "B2")
    book.active["A1"].comment = Comment("A comment", "Somebody")
    book.save(target)


@recipes.document("office/gnumeric-book.xlsx", "gnumeric")
def gnumeric_book(target: Path) -> None:
    """By Gnumeric: a table of 3,000 rows."""
    run("ssconvert", written("table.csv", table_csv()), target)


@recipes.document("odf/gnumeric-book.ods", "gnumeric")
def gnumeric_ods(target: Path) -> None:
    """By Gnumeric: a table of 3,000 rows."""
    run("ssconvert", written("table.csv", table_csv()), target)
