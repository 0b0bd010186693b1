"""Installs the programs, and makes all documents in the build folder."""

import shutil
from pathlib import Path

from corpus import images, libreoffice, markup, packages, pdf
from corpus.workshop import BUILD, OUT, CorpusError, run

RECIPES = [*pdf.recipes, *images.recipes, *libreoffice.recipes, *packages.recipes, *markup.recipes]

MADE_FROM_OTHERS = [
    "pdf/tiff2pdf-fax.pdf",
    "pdf/poppler-united.pdf",
    "pdf/qpdf-linearised.pdf",
    "pdf/rsvg-plot.pdf",
    "xml/cairo-drawing.svg",
    "images/cwebp-photo.webp",
    "images/gif2webp-animation.webp",
    "odf/libreoffice-graph.odg",
    "office/libreoffice-macro.docm",
]
"""Made last, in this order: each needs one of the others."""

PROGRAMS = """
    abiword docbook-xsl fonts-dejavu-core fonts-liberation ghostscript gnumeric gnuplot-nox graphviz groff
    imagemagick libimage-exiftool-perl libreoffice-calc-nogui libreoffice-draw-nogui libreoffice-impress-nogui
    libreoffice-writer-nogui librsvg2-bin libtiff-tools pandoc poppler-utils python3-cairo python3-docx
    python3-matplotlib python3-openpyxl python3-pil python3-reportlab python3-uno python3-xlsxwriter qpdf
    texlive-latex-base texlive-latex-recommended texlive-pictures weasyprint webp wkhtmltopdf
    xkb-data xsltproc
"""
UNPACKED = ["fontconfig-config", "python3-skimage", "python3-sklearn", "zsh-doc"]
"""Packages out of which only files are taken."""


def prepare() -> None:
    """Empty the build folder, install the programs, and unpack what is not installed."""
    shutil.rmtree(BUILD, ignore_errors=True)
    for folder in ("home", "sources", *(f"out/{Path(recipe.name).parent}" for recipe in RECIPES)):
        (BUILD / folder).mkdir(parents=True, exist_ok=True)
    patient = ("-q", "-o", "DPkg::Lock::Timeout=600")
    run("apt-get", *patient, "install", "-y", "--no-install-recommends", *PROGRAMS.split(), cwd=Path("/"))
    run("apt-get", *patient, "download", *UNPACKED)
    for package in BUILD.glob("*.deb"):
        run("dpkg-deb", "-x", package, "sources")


def make_all() -> None:
    """Make every document.

    Raises:
        CorpusError: A program failed, or wrote nothing.
    """
    last = {name: n for n, name in enumerate(MADE_FROM_OTHERS)}
    with libreoffice.OFFICE.running():
        for recipe in sorted(RECIPES, key=lambda recipe: last.get(recipe.name, -1)):
            recipe.make(OUT / recipe.name)
    missing = [recipe.name for recipe in RECIPES if not (OUT / recipe.name).is_file()]
    if missing:
        raise CorpusError(f"not made: {', '.join(missing)}")
