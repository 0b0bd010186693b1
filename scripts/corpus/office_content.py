"""What LibreOffice fills its documents with."""

from pathlib import Path

from corpus.ingredients import ELSEWHERE, jpeg, paragraphs
from corpus.office import Office, Uno, property_array, replace_event, struct


def sized(shape: Uno, place: tuple[int, int], size: tuple[int, int]) -> Uno:
    """The shape at a place and in a size, in hundredths of a millimetre."""
    shape.Position = struct("awt.Point", *place)
    shape.Size = struct("awt.Size", *size)
    return shape


def write_report(office: Office, document: Uno, pictures: list[Path]) -> None:
    """Fill a text document: headings, paragraphs, a link, pictures, a table."""
    text, cursor = document.Text, document.Text.createTextCursor()
    for n, line in enumerate(paragraphs()[:45]):
        cursor.ParaStyleName = "Heading 1" if len(line) < 60 else "Text body"
        text.insertString(cursor, line, False)
        text.insertControlCharacter(cursor, 0, False)
        if n % 12 == 5 and pictures:
            image = document.createInstance("com.sun.star.text.TextGraphicObject")
            image.Graphic = office.graphic(pictures.pop())
            image.Size = struct("awt.Size", 12000, 8000)
            text.insertTextContent(cursor, image, False)
    _write_table(document, cursor)
    cursor.gotoEnd(False)
    text.insertString(cursor, "A link to the web", True)
    cursor.HyperLinkURL = f"{ELSEWHERE}page"


def _write_table(document: Uno, cursor: Uno) -> None:
    table = document.createInstance("com.sun.star.text.TextTable")
    table.initialize(8, 4)
    document.Text.insertTextContent(cursor, table, False)
    for n, name in enumerate(table.CellNames):
        table.getCellByName(name).String = f"Cell {n}"


def fill_sheet(sheet: Uno, rows: int) -> None:
    """Fill a sheet: a table with formulas, and a chart."""
    head = ("Day", "Income", "Costs", "Result", "Note")
    data = [
        (n, (n * 7919) % 1000, (n * 104729) % 700, f"=B{n + 1}-C{n + 1}", f"Entry number {n}") for n in range(1, rows)
    ]
    cells = sheet.getCellRangeByPosition(0, 0, 4, rows - 1)
    cells.setFormulaArray(tuple(tuple(map(str, row)) for row in (head, *data)))
    where = struct("awt.Rectangle", 14000, 500, 14000, 8000)
    shown = sheet.getCellRangeByPosition(0, 0, 2, min(rows, 40) - 1).RangeAddress
    sheet.Charts.addNewByName("Chart", where, (shown,), True, True)


def draw_page(office: Office, document: Uno, page: Uno, number: int) -> None:
    """Fill a page or a slide: shapes, some with text, and a picture."""
    for n in range(12):
        kind = ("Rectangle", "Ellipse", "Text", "Line")[n % 4]
        shape = document.createInstance(f"com.sun.star.drawing.{kind}Shape")
        page.add(sized(shape, (1000 + n * 1500, 1500 + (n * n * 97) % 9000), (5000, 2500)))
        if kind != "Line":
            shape.String = paragraphs()[number * 3 + n][:60]
        if kind in {"Rectangle", "Ellipse"}:
            shape.FillColor = 0x204060 * (n + 1) % 0xFFFFFF
    image = document.createInstance("com.sun.star.drawing.GraphicObjectShape")
    page.add(sized(image, (14000, 8000), (9000, 6000)))
    image.Graphic = office.graphic(jpeg(("coffee", "chelsea", "camera")[number % 3]))


def add_macro(document: Uno, event: str) -> None:
    """Add a macro in LibreOffice Basic, bound to an event of the document."""
    code = 'Sub Greet\n  MsgBox "Hello"\nEnd Sub\n'
    if not document.BasicLibraries.hasByName("Standard"):
        document.BasicLibraries.createLibrary("Standard")
    document.BasicLibraries.getByName("Standard").insertByName("Hello", code)
    script = "vnd.sun.star.script:Standard.Hello.Greet?language=Basic&location=document"
    replace_event(document, event, property_array(EventType="Script", Script=script))


def add_vba(document: Uno) -> None:
    """Add a macro in VBA: LibreOffice writes a library in its compatibility mode as a vbaProject.bin."""
    libraries = document.BasicLibraries
    libraries.VBACompatibilityMode = True
    libraries.ProjectName = "VBAProject"
    if not libraries.hasByName("VBAProject"):
        libraries.createLibrary("VBAProject")
    library = libraries.getByName("VBAProject")
    module = struct("script.ModuleInfo")
    module.ModuleType = 1
    library.insertModuleInfo("Module1", module)
    library.insertByName("Module1", 'Option VBASupport 1\nSub Greet()\n  MsgBox "Hello"\nEnd Sub\n')
