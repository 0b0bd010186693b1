"""Documents that attack the program that opens them: made when needed, never stored.

Each is small on disk and quick to make, and harms a trusting engine such as the worker in `disarm`: it eats
memory, or time, or is nonsense. The damaged ones are cut or flipped copies of documents in tests/corpus.
`EXPECTED` says how each ends in a sandbox with the limits in `LIMITS`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hostile_documents import images, markup, packages, pdf, samples
from hostile_documents.packing import MIB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMITS = {"memory": 512 * MIB, "wall_seconds": 10.0}
"""What `EXPECTED` was measured under; the fields are those of `gwsandbox.Limits`."""

_FAILS = frozenset(("FAILED",))
_EATS_MEMORY = frozenset(("OUT_OF_MEMORY",))
_EATS_TIME = frozenset(("TIMED_OUT",))

EXPECTED: dict[str, frozenset[str]] = {
    # The comments say what each does to a worker without limits that is stopped at 4 GiB or 75 s.
    "bmp-bomb.bmp": _EATS_MEMORY | _FAILS,  # 4 GiB in 40 s; Pillow 10.3 takes it for damaged
    "cut.docx": _FAILS,
    "cut.odt": _FAILS,
    "cut.pdf": _FAILS,
    "cut.png": _FAILS,
    "docx-elements.docx": _EATS_MEMORY,  # 1.6 GiB and 38 s, then it succeeds
    "docx-entities.docx": _FAILS | _EATS_MEMORY,  # as xml-nested-entities.xml
    "docx-zip-bomb.docx": _EATS_MEMORY,  # 4 GiB in 46 s, of the 8 that it holds
    "flipped.jpg": _FAILS,
    "flipped.pdf": _FAILS,
    "flipped.xlsx": _FAILS,
    "gif-canvas-bomb.gif": _EATS_MEMORY,  # 4 GiB in 14 s
    "gif-frames-bomb.gif": _EATS_MEMORY,  # 4 GiB in 20 s
    "no-document.pdf": _FAILS,
    "pdf-deep.pdf": _FAILS,
    # 4 GiB in 21 s. Where allocations fail and no process is killed, qpdf says that the file is damaged.
    "pdf-object-stream-bomb.pdf": _EATS_MEMORY | _FAILS,
    "pdf-page-loop.pdf": _FAILS,
    "pdf-stream-bomb.pdf": _EATS_TIME,  # 75 s and running, in 43 MiB
    "png-bomb.png": _EATS_MEMORY,  # 4 GiB in 7 s, of the 10 that it holds
    # Current libxml2 refuses to expand entities without measure; that of Debian 12 (2.9.14) obeys `huge_tree`.
    "svg-nested-entities.svg": _FAILS | _EATS_MEMORY,
    "tiff-bomb.tif": _EATS_MEMORY,  # 4 GiB in 26 s, of the 12 that it holds
    "xml-deep.xml": frozenset(("FAILED", "SUCCEEDED")),  # libxml2's version decides which depth is too much
    "xml-entity-loop.xml": _FAILS,
    "xml-nested-entities.xml": _FAILS | _EATS_MEMORY,
    "xml-quadratic.xml": _FAILS | _EATS_MEMORY | _EATS_TIME,
    "xml-scripts.xml": _EATS_TIME,  # 75 s and running, in 169 MiB
}
"""The names of the outcomes that are right, by the name of the file.

On a machine so slow that the time is up before memory is full, a document that eats memory may be TIMED_OUT.
"""

MAKERS: dict[str, Callable[[], bytes]] = {
    "docx-zip-bomb.docx": packages.docx_zip_bomb,
    "docx-elements.docx": packages.docx_elements,
    "docx-entities.docx": packages.docx_entities,
    "png-bomb.png": images.png_bomb,
    "tiff-bomb.tif": images.tiff_bomb,
    "gif-canvas-bomb.gif": images.gif_canvas_bomb,
    "gif-frames-bomb.gif": images.gif_frames_bomb,
    "bmp-bomb.bmp": images.bmp_bomb,
    "xml-nested-entities.xml": markup.xml_nested_entities,
    "svg-nested-entities.svg": markup.svg_nested_entities,
    "xml-quadratic.xml": markup.xml_quadratic,
    "xml-scripts.xml": markup.xml_scripts,
    "xml-deep.xml": markup.xml_deep,
    "xml-entity-loop.xml": markup.xml_entity_loop,
    "pdf-object-stream-bomb.pdf": pdf.pdf_object_stream_bomb,
    "pdf-stream-bomb.pdf": pdf.pdf_stream_bomb,
    "pdf-page-loop.pdf": pdf.pdf_page_loop,
    "pdf-deep.pdf": pdf.pdf_deep,
    "no-document.pdf": samples.no_document,
    "cut.pdf": partial(samples.cut, "pdf/pdftex-article.pdf"),
    "cut.png": partial(samples.cut, "images/astronaut.png"),
    "cut.docx": partial(samples.cut, "office/libreoffice-report.docx"),
    "cut.odt": partial(samples.cut, "odf/libreoffice-report.odt"),
    "flipped.jpg": partial(samples.flipped, "images/china.jpg", every=500),
    "flipped.pdf": partial(samples.flipped, "pdf/pdftex-article.pdf", every=5000),
    "flipped.xlsx": partial(samples.flipped, "office/libreoffice-sheet.xlsx", every=5000),
}
"""How each is made, by the name of the file."""


def make_hostile_documents(folder: Path) -> list[Path]:
    """Write them all into `folder`, which is made if it is missing; the paths, in order of name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in MAKERS.items():
        (folder / name).write_bytes(make())
    return sorted(folder / name for name in MAKERS)
