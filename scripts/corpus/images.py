"""Images."""

import shutil
from functools import partial
from pathlib import Path

from corpus.ingredients import figures, large_photo, moving_frames, picture
from corpus.recipe import PHOTO, Recipes
from corpus.workshop import BUILD, OUT, SOURCES, run

recipes = Recipes()


SHIPPED_PHOTOS = {"china.jpg": "python3-sklearn", "hubble.jpg": "python3-skimage", "astronaut.png": "python3-skimage"}
"""Photographs that are taken as they are."""

CONVERTED_PHOTOS = {
    "cmyk.jpg": ("flower", "-colorspace CMYK -quality 85", "a photograph in CMYK"),
    "grey.jpg": ("camera", "-colorspace Gray -quality 92", "a photograph in grey"),
    "palette.png": ("chelsea", "-colors 256", "a photograph in 256 colours"),
    "16bit.png": (
        "camera",
        "-resize 300x -colorspace Gray -interlace PNG -define png:bit-depth=16 -define png:color-type=0",
        "a photograph in grey, 16 bits a pixel, interlaced",
    ),
    "palette.bmp": (
        "camera",
        "-resize 256x -colors 64 -compress RLE",
        "a photograph in 64 colours, run-length encoded",
    ),
    "still.gif": ("flower", "-resize 320x -colors 128 -interlace GIF", "a photograph in 128 colours, interlaced"),
    "lzw.tif": ("coffee", "-resize 320x -compress LZW", "a photograph, LZW with a predictor"),
    "photo.bmp": ("chelsea", "-resize 240x -type TrueColor", "a photograph, 24 bits a pixel"),
    "large.jpg": ("china", "-interlace JPEG -quality 80", "a photograph at a camera's size, progressive"),
    "large.png": ("china", "-resize 900x", "a photograph with a sensor's noise"),
}
"""By ImageMagick: the picture, the options of `convert`, what the document holds."""


def add_photos() -> None:
    """Add the recipes of both tables."""
    for name, package in SHIPPED_PHOTOS.items():
        stem = Path(name).stem
        recipes.add(f"images/{name}", package, "As shipped: a photograph.", PHOTO[stem], partial(copy_photo, stem))
    for name, (stem, options, holds) in CONVERTED_PHOTOS.items():
        make = partial(convert_photo, stem, options.split())
        recipes.add(f"images/imagemagick-{name}", "imagemagick", f"By ImageMagick: {holds}.", PHOTO[stem], make)


def copy_photo(stem: str, target: Path) -> None:
    shutil.copy(picture(stem), target)


def convert_photo(stem: str, options: list[str], target: Path) -> None:
    source = large_photo(2400) if "large" in target.name else picture(stem)
    kind = {"palette.png": "PNG8:", "photo.bmp": "BMP3:", "palette.bmp": "BMP3:"}
    run("convert", source, *options, kind.get(target.name.removeprefix("imagemagick-"), "") + str(target))


add_photos()


EXIF = (
    *("-q", "-overwrite_original"),
    *("-GPSLatitude=48.8584", "-GPSLatitudeRef=N", "-GPSLongitude=2.2945", "-GPSLongitudeRef=E"),
    *("-Make=Maker", "-Model=Model 1", "-SerialNumber=12345678", "-Orientation#=6"),
    *("-Artist=Somebody", "-XMP:Creator=Somebody", "-DateTimeOriginal=2024:01:02 03:04:05"),
    *("-IPTC:By-line=Somebody", "-Comment=A comment"),
)
"""ExifTool's options."""


@recipes.document("images/exif-gps.jpg", "libimage-exiftool-perl", licence=PHOTO["flower"])
def exif_gps(target: Path) -> None:
    """By ImageMagick and ExifTool: **EXIF with GPS position and turn, IPTC, XMP, a comment, a thumbnail**."""
    run("convert", picture("flower"), target)
    thumbnail = BUILD / "thumbnail.jpg"
    run("convert", picture("flower"), "-thumbnail", "120x", thumbnail)
    run("exiftool", *EXIF, f"-ThumbnailImage<={thumbnail}", target)


@recipes.document("images/matplotlib-plot.png", "python3-matplotlib")
def matplotlib_png(target: Path) -> None:
    """By matplotlib: a plot, RGBA, with **text about its making**."""
    next(figures(1)).savefig(target, dpi=150, metadata={"Author": "Somebody", "Comment": "A comment"})


@recipes.document("images/pillow-animation.png", "python3-pil")
def animated_png(target: Path) -> None:
    """By Pillow: an animation (APNG)."""
    frames = moving_frames()
    frames[0].save(target, save_all=True, append_images=frames[1:], duration=80, loop=0)


@recipes.document("images/imagemagick-animation.gif", "imagemagick", licence=PHOTO["coffee"])
def animated_gif(target: Path) -> None:
    """By ImageMagick: an animation with a photograph, optimised frames, **a comment**."""
    turns = [
        part
        for angle in range(0, 60, 6)
        for part in ("(", str(picture("coffee")), "-resize", "200x", "-modulate", f"100,100,{100 + angle}", ")")
    ]
    run("convert", "-delay", "12", "-loop", "0", *turns, "-set", "comment", "A comment", "-layers", "Optimize", target)


@recipes.document("images/gnuplot-surface.gif", "gnuplot-nox")
def gnuplot_gif(target: Path) -> None:
    """By gnuplot (libgd): an animated plot, transparent."""
    terminal = f"set term gif animate transparent size 320,240 delay 10; set output '{target}'; "
    run("gnuplot", "-e", terminal + "do for [i=0:11] {set view 60,i*15; splot sin(x)*cos(y) with lines notitle}")


@recipes.document("images/ghostscript-fax.tif", "ghostscript")
def fax_tiff(target: Path) -> None:
    """By Ghostscript: three pages in black and white, CCITT group 4."""
    options = ("-q", "-dSAFER", "-sDEVICE=tiffg4", "-r150", "-dLastPage=4")
    run("gs", *options, "-o", target, OUT / "pdf/ghostscript-groff.pdf")


@recipes.document("images/libtiff-tiled.tif", "libtiff-tools", licence=PHOTO["chelsea"])
def tiled_tiff(target: Path) -> None:
    """By tiffcp (libtiff): a photograph in tiles, Deflate, big-endian."""
    plain = BUILD / "plain.tif"
    run("convert", picture("chelsea"), "-resize", "320x", "-compress", "None", plain)
    run("tiffcp", "-B", "-c", "zip", "-t", "-w", "128", "-l", "128", plain, target)


@recipes.document("images/chessboard-16bit.tif", "python3-skimage", licence="scikit-image: BSD-3-Clause")
def deep_tiff(target: Path) -> None:
    """As shipped: grey, 16 bits a pixel, uncompressed."""
    shutil.copy(next(SOURCES.rglob("chessboard_GRAY_U16.tif")), target)


@recipes.document("images/cwebp-photo.webp", "webp", licence=PHOTO["flower"])
def lossy_webp(target: Path) -> None:
    """By cwebp: a photograph, lossy, **with EXIF**."""
    run("cwebp", "-quiet", "-q", "80", "-metadata", "all", OUT / "images/exif-gps.jpg", "-o", target)


@recipes.document("images/cwebp-lossless.webp", "webp")
def lossless_webp(target: Path) -> None:
    """By cwebp: a plot, lossless, transparent."""
    plot = BUILD / "plot.png"
    next(figures(1)).savefig(plot, dpi=100, transparent=True)
    run("cwebp", "-quiet", "-lossless", plot, "-o", target)


@recipes.document("images/gif2webp-animation.webp", "webp", licence=PHOTO["coffee"])
def animated_webp(target: Path) -> None:
    """By gif2webp: an animation."""
    run("gif2webp", "-quiet", "-mixed", OUT / "images/imagemagick-animation.gif", "-o", target)
