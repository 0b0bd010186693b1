"""XML documents, SVG and XHTML among them, except LibreOffice's."""

import re
import shutil
from pathlib import Path

from corpus.ingredients import ELSEWHERE, figures
from corpus.packages import pandoc
from corpus.recipe import Recipes
from corpus.workshop import BUILD, OUT, SOURCES, run

recipes = Recipes()


@recipes.document("xml/matplotlib-plot.svg", "python3-matplotlib")
def matplotlib_svg(target: Path) -> None:
    """By matplotlib: a plot, metadata, a document type declaration."""
    next(figures(1)).savefig(target)


@recipes.document("xml/gnuplot-mouse.svg", "gnuplot-nox")
def gnuplot_svg(target: Path) -> None:
    """By gnuplot: a plot **with scripts and event handlers** for the mouse."""
    run("gnuplot", "-e", f"set term svg mouse standalone; set output '{target}'; plot sin(x), cos(x)")


@recipes.document("xml/graphviz-graph.svg", "graphviz")
def graphviz_svg(target: Path) -> None:
    """By Graphviz: a graph with links, a document type declaration, comments."""
    edges = "".join(f'n{n} -> n{(n * n + 1) % 60}; n{n} [URL="{ELSEWHERE}{n}"]; ' for n in range(60))
    run("dot", "-Tsvg", "-o", target, stdin=f"digraph {{ {edges} }}")


@recipes.document("xml/graphviz-script.svg", "graphviz")
def script_svg(target: Path) -> None:
    """By Graphviz: **a script, an event handler, a stylesheet from elsewhere**, put in by hand."""
    run("dot", "-Tsvg", "-o", target, stdin="digraph { a -> b -> c }")
    drawing = target.read_text(encoding="utf-8")
    drawing = drawing.replace("<svg ", f'<?xml-stylesheet href="{ELSEWHERE}style.css"?>\n<svg onload="greet()" ', 1)
    drawing = drawing.replace("</svg>", "<script>function greet() { alert('hello') }</script>\n</svg>")
    target.write_text(drawing, encoding="utf-8")


@recipes.document("xml/cairo-drawing.svg", "poppler-utils")
def cairo_svg(target: Path) -> None:
    """By pdftocairo (poppler, cairo): a page of text as outlines."""
    run("pdftocairo", "-svg", "-f", "2", "-l", "2", OUT / "pdf/pdftex-article.pdf", target)


@recipes.document("xml/pandoc-report.docbook.xml", "pandoc")
def pandoc_docbook(target: Path) -> None:
    """By Pandoc: a DocBook article."""
    pandoc(target, "-t", "docbook", "-s")


@recipes.document("xml/docbook-article.xhtml", "xsltproc")
def docbook_xhtml(target: Path) -> None:
    """By xsltproc with the DocBook stylesheets: a web page, a document type declaration."""
    article = BUILD / "article.xml"
    pandoc(article, "-t", "docbook4", "-s")
    plain = re.sub(r"<!DOCTYPE[^>]*>", "", article.read_text(encoding="utf-8"))
    article.write_text(plain, encoding="utf-8")
    style = "/usr/share/xml/docbook/stylesheet/docbook-xsl/xhtml/docbook.xsl"
    run("xsltproc", "--nonet", "-o", target, style, article)


@recipes.document("xml/pandoc-entities.xml", "pandoc")
def entities_xml(target: Path) -> None:
    """By Pandoc: a DocBook article, **entities in a DTD** put in by hand."""
    pandoc(target, "-t", "docbook4", "-s")
    article = target.read_text(encoding="utf-8")
    article = re.sub(r"<!DOCTYPE[^>]*>", '<!DOCTYPE article [<!ENTITY place "the corpus">]>', article)
    target.write_text(article.replace("<title>", "<title>In &place;: "), encoding="utf-8")


@recipes.document("xml/xkb-base.xml", "xkb-data", licence="xkb-data: MIT")
def xkb_xml(target: Path) -> None:
    """As shipped: keyboard layouts, a document type declaration."""
    shutil.copy("/usr/share/X11/xkb/rules/base.xml", target)


@recipes.document("xml/fontconfig.conf", "fontconfig-config", licence="fontconfig: MIT-like")
def fontconfig_xml(target: Path) -> None:
    """As shipped: a small file that is not called .xml."""
    shutil.copy(next(SOURCES.rglob("60-latin.conf")), target)
