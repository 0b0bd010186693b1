"""PDF documents, except LibreOffice's."""

import re
import shutil
import subprocess
from pathlib import Path

from corpus.ingredients import ELSEWHERE, figures, page_html, paragraphs, picture
from corpus.recipe import OURS, PHOTO, Recipes
from corpus.workshop import BUILD, ENVIRONMENT, OUT, SOURCES, run, written

recipes = Recipes()
_PAGE_LICENCE = f"{OURS}; {PHOTO['coffee']}; {PHOTO['chelsea']}"


def latex(target: Path, source: str) -> None:
    """Typeset a document with pdfTeX."""
    written("document.tex", source)
    for _ in range(2):  # the second run knows the references of the first
        run("pdflatex", "-halt-on-error", "-interaction=batchmode", "document.tex")
    shutil.move(BUILD / "document.pdf", target)


def tex_text() -> list[str]:
    """The paragraphs, escaped for TeX."""
    return [re.sub(r"([#$%&_{}])", r"\\\1", re.sub(r"[~^\\]", " ", line)) for line in paragraphs()]


@recipes.document("pdf/pdftex-article.pdf", "texlive-binaries")
def pdftex_article(target: Path) -> None:
    """By pdfTeX: text, mathematics, cross references, links to the web."""
    formulas = r"\begin{equation}\int_0^\infty e^{-x^2}\,dx=\frac{\sqrt\pi}{2}\end{equation}"
    sections = "\n".join(
        rf"\section{{Part {n}}}\label{{p{n}}} {line} See \ref{{p{n}}}. {formulas}"
        for n, line in enumerate(tex_text()[:40], 1)
    )
    start = r"\documentclass{article}\usepackage{hyperref}\begin{document}\tableofcontents "
    latex(target, start + sections + rf"\href{{{ELSEWHERE}}}{{A link}}\end{{document}}")


@recipes.document("pdf/pdftex-photos.pdf", "texlive-binaries", licence=f"{OURS}; {PHOTO['flower']}; {PHOTO['china']}")
def pdftex_photos(target: Path) -> None:
    """By pdfTeX: photographs."""
    pages = r"\newpage ".join(rf"\includegraphics[width=\linewidth]{{{picture(name)}}}" for name in ("flower", "china"))
    latex(target, rf"\documentclass{{article}}\usepackage{{graphicx}}\begin{{document}}{pages}\end{{document}}")


@recipes.document("pdf/pdftex-slides.pdf", "texlive-binaries")
def pdftex_slides(target: Path) -> None:
    """By pdfTeX with beamer: slides with overlays, bookmarks, named actions."""
    frames = "".join(
        rf"\begin{{frame}}{{Slide {n}}}\begin{{itemize}}[<+->]\item {line[:200]}"
        r"\item Second\end{itemize}\end{frame}"
        for n, line in enumerate(tex_text()[:12])
    )
    latex(target, rf"\documentclass{{beamer}}\usetheme{{Madrid}}\begin{{document}}{frames}\end{{document}}")


ACTIVE_SOURCE = r"""\documentclass{article}\begin{document}Hello.
        \immediate\pdfobj{<< /S /JavaScript /JS (app.alert('hello');) >>}
        \pdfcatalog{/OpenAction \the\pdflastobj\space 0 R}
        \pdfnames{/JavaScript << /Names [(hello) \the\pdflastobj\space 0 R] >>}
        \pdfpageattr{/AA << /O << /S /JavaScript /JS (app.beep(0);) >> >>}
        \immediate\pdfobj stream attr{/Type /EmbeddedFile} file {NOTE}
        \immediate\pdfobj{<< /Type /Filespec /F (note.txt) /EF << /F \the\pdflastobj\space 0 R >> >>}
        \pdfnames{/EmbeddedFiles << /Names [(note.txt) \the\pdflastobj\space 0 R] >>}
        \noindent\pdfannot width 5cm height 1em {/Subtype /Link /Border [0 0 1]
            /A << /S /Launch /F (calculator) /Next [<< /S /URI /URI (ELSEWHERE) >>] >>}
        \end{document}"""


@recipes.document("pdf/pdftex-active.pdf", "texlive-binaries")
def pdftex_active(target: Path) -> None:
    """By pdfTeX: **JavaScript on opening and by name, an embedded file, a launch action, a page action**."""
    note = written("note.txt", "An embedded file.\n")
    latex(target, ACTIVE_SOURCE.replace("NOTE", str(note)).replace("ELSEWHERE", ELSEWHERE))


@recipes.document("pdf/cairo-drawing.pdf", "libcairo2")
def cairo_drawing(target: Path) -> None:
    """By cairo: curves, gradients, transparency, text."""
    import cairo  # Debian's, present once the programs are installed

    with cairo.PDFSurface(str(target), 600, 800) as surface:
        context = cairo.Context(surface)
        for page in range(6):
            for n in range(400):
                context.set_source_rgba(n / 400, page / 6, 0.5, 0.4)
                context.arc(300 + n / 2, 400 - n / 3, n / 2, 0, 5)
                context.stroke()
            context.move_to(40, 40)
            context.show_text(f"Page {page}")
            context.show_page()


@recipes.document("pdf/rsvg-plot.pdf", "librsvg2-bin")
def rsvg_plot(target: Path) -> None:
    """By rsvg-convert (cairo): a plot turned from SVG."""
    run("rsvg-convert", "-f", "pdf", "-o", target, OUT / "xml/matplotlib-plot.svg")


@recipes.document("pdf/ghostscript-groff.pdf", "ghostscript")
def ghostscript_groff(target: Path) -> None:
    """By Ghostscript from groff's PostScript: text in embedded Type 1 fonts."""
    source = ".TL\nTerms\n" + "".join(f".PP\n{line}\n" for line in paragraphs())
    postscript = written("terms.ps", run("groff", "-ms", "-Tps", stdin=source))
    run("ps2pdf", postscript, target)


@recipes.document("pdf/groff-manual.pdf", "groff")
def groff_manual(target: Path) -> None:
    """By gropdf: a manual page, without a compressed stream."""
    source = '.TH CORPUS 7 "" "" ""\n.SH TERMS\n' + "".join(f".PP\n{line}\n" for line in paragraphs()[:30])
    written("manual.7", source)
    with target.open("wb") as file:
        subprocess.run(["groff", "-man", "-Tpdf", str(BUILD / "manual.7")], env=ENVIRONMENT, stdout=file, check=True)


@recipes.document("pdf/tiff2pdf-fax.pdf", "libtiff-tools")
def tiff2pdf_fax(target: Path) -> None:
    """By tiff2pdf: three scanned pages, CCITT fax compression."""
    run("tiff2pdf", "-o", target, OUT / "images/ghostscript-fax.tif")


@recipes.document("pdf/poppler-united.pdf", "poppler-utils")
def poppler_united(target: Path) -> None:
    """By pdfunite (poppler): two of the others joined."""
    run("pdfunite", OUT / "pdf/cairo-drawing.pdf", OUT / "pdf/pdftex-article.pdf", target)


@recipes.document("pdf/qpdf-linearised.pdf", "qpdf")
def qpdf_linearised(target: Path) -> None:
    """By qpdf: linearised, with object streams."""
    run("qpdf", "--linearize", "--object-streams=generate", OUT / "pdf/pdftex-article.pdf", target)


@recipes.document("pdf/matplotlib-plots.pdf", "python3-matplotlib")
def matplotlib_plots(target: Path) -> None:
    """By matplotlib: six pages of plots, one with 20,000 points."""
    from matplotlib.backends.backend_pdf import PdfPages

    with PdfPages(target) as pages:
        for figure in figures(6):
            pages.savefig(figure)


@recipes.document("pdf/reportlab-form.pdf", "python3-reportlab")
def reportlab_form(target: Path) -> None:
    """By ReportLab: a form with fields, outline entries, a link to the web."""
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(target))
    for page in range(5):
        canvas.bookmarkPage(f"p{page}")
        canvas.addOutlineEntry(f"Page {page}", f"p{page}")
        for n, line in enumerate(paragraphs()[page * 10 : page * 10 + 10]):
            canvas.drawString(60, 780 - 60 * n, line[:90])
            canvas.acroForm.textfield(name=f"f{page}.{n}", x=60, y=745 - 60 * n, width=300, height=20)
            canvas.acroForm.checkbox(name=f"c{page}.{n}", x=380, y=745 - 60 * n)
        canvas.linkURL(ELSEWHERE, (60, 40, 200, 60))
        canvas.showPage()
    canvas.save()


@recipes.document("pdf/weasyprint-page.pdf", "weasyprint", licence=_PAGE_LICENCE)
def weasyprint_page(target: Path) -> None:
    """By WeasyPrint: a web page in columns, photographs."""
    run("weasyprint", written("page.html", page_html()), target)


@recipes.document("pdf/wkhtmltopdf-page.pdf", "wkhtmltopdf", licence=_PAGE_LICENCE)
def wkhtmltopdf_page(target: Path) -> None:
    """By wkhtmltopdf (Qt): a web page, photographs."""
    run("wkhtmltopdf", "--quiet", "--enable-local-file-access", written("page.html", page_html()), target)


@recipes.document("pdf/zsh-manual.pdf", "zsh-doc", licence="zsh-doc: zsh's MIT-like licence")
def zsh_manual(target: Path) -> None:
    """By pdfTeX with Texinfo, as shipped: a book of more than 400 pages."""
    shutil.copy(SOURCES / "usr/share/doc/zsh-common/zsh.pdf", target)
