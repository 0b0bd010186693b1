"""What the documents are made of: a text, pictures, and pages of both."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from corpus.workshop import BUILD, SOURCES, run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as Frame

LICENCE_TEXT = Path("/usr/share/common-licenses/Apache-2.0")
ELSEWHERE = "https://example.org/"
"""What a link leads to; nothing fetches it."""


def paragraphs() -> list[str]:
    """The paragraphs of the Apache License, each in one line."""
    blocks = re.split(r"\n\s*\n", LICENCE_TEXT.read_text(encoding="utf-8"))
    return [" ".join(block.split()) for block in blocks if block.strip()]


def picture(name: str) -> Path:
    """The file of a picture out of the unpacked packages; among several, the one with the shortest path."""
    return min(SOURCES.rglob(f"{name}*.[jp][pn]g"), key=lambda path: len(str(path)))


def jpeg(name: str) -> Path:
    """A picture as a JPEG file, which is smaller."""
    target = BUILD / f"{name}.jpg"
    if not target.exists():
        run("convert", picture(name), "-quality", "85", target)
    return target


def large_photo(width: int) -> Path:
    """A photograph at a camera's size: enlarged, with a sensor's noise, so that it is as hard to compress."""
    target = BUILD / f"large-{width}.png"
    if not target.exists():
        noise = ("-seed", "1", "-attenuate", "0.04", "+noise", "Gaussian")
        run("convert", picture("china"), "-resize", f"{width}x", *noise, target)
    return target


def markdown() -> str:
    """A report with every construct that pandoc carries over: lists, a table, code, a formula, a picture."""
    text = paragraphs()
    rows = "\n".join(f"| {n} | {n * n} | {n**3} |" for n in range(1, 15))
    blocks = [
        "---\ntitle: A report\nauthor: The corpus\n---",
        *("# Terms", *text[:12]),
        *("## A table", f"| n | n² | n³ |\n|---|---|---|\n{rows}"),
        *("# A picture", f"![A cup]({jpeg('coffee')})"),
        *("# Mathematics and code", r"$$\sum_{k=1}^{n} k = \frac{n(n+1)}{2}$$"),
        *("~~~python\nprint('no limits')\n~~~", f"[A link]({ELSEWHERE}page)"),
        *("# More terms", *(f"* {line}" for line in text[12:20]), *text[20:40]),
    ]
    return "\n\n".join(blocks)


def page_html() -> str:
    """A web page in columns, with pictures and a link."""
    body = "".join(f"<h2>Section {n}</h2><p>{line}</p>" for n, line in enumerate(paragraphs()[:25], start=1))
    images = "".join(f'<img src="file://{jpeg(name)}" width="300" alt="">' for name in ("coffee", "chelsea"))
    return (
        "<!DOCTYPE html><html><head><meta charset='utf-8'><title>A page</title>"
        "<style>body{font-family:serif;columns:2} h2{color:#246;border-bottom:1px solid}</style></head>"
        f"<body><h1>A page</h1>{images}{body}<a href='{ELSEWHERE}'>elsewhere</a></body></html>"
    )


def figures(count: int) -> "Iterator[Figure]":
    """Plots of curves and points; the fourth has 20,000 points."""
    import numpy as np
    from matplotlib import pyplot as plt

    noise = np.random.default_rng(1)
    for n in range(count):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
        x = np.linspace(0, 10, 500)
        left.plot(x, np.sin(x * (n + 1)), x, np.cos(x) ** (n + 1))
        points = 20000 if n == 3 else 300
        right.scatter(noise.normal(size=points), noise.normal(size=points), s=2)
        figure.suptitle(f"Figure {n}")
        yield figure
        plt.close(figure)


def moving_frames() -> "list[Frame]":
    """The frames of an animation."""
    from PIL import Image, ImageDraw

    frames = []
    for n in range(24):
        frame = Image.new("RGBA", (240, 160), (n * 10, 40, 90, 255))
        ImageDraw.Draw(frame).ellipse((n * 7, 40, n * 7 + 70, 110), fill=(250, 200 - n * 6, 20, 255))
        frames.append(frame)
    return frames


def table_csv() -> str:
    """A table of 3,000 rows."""
    return "".join(f"{n},{(n * 7919) % 1000},Entry number {n}\n" for n in range(3000))
