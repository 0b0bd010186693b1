"""Images, decoded and encoded again with Pillow."""

from __future__ import annotations

import io
import zlib
from typing import Any

from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from disarm.errors import BrokenDocument
from disarm.shared import Removed

Image.MAX_IMAGE_PIXELS = None

IMAGE_MAGIC = (
    (rb"\x89PNG\r\n\x1a\n", "png"),
    (rb"\xff\xd8\xff", "jpeg"),
    (rb"GIF8[79]a", "gif"),
    (rb"II[*+]\x00|MM\x00[*+]", "tiff"),
    (rb"RIFF....WEBP", "webp"),
    (rb"BM.{12}[\x0c-\xff]\x00\x00\x00", "bmp"),
)


def disarm_image(data: bytes, removed: Removed) -> bytes:
    """Return the clean image, in the format that it had."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            _count_metadata(image, removed)
            lossless = b"VP8L" in data[:64]
            return _encode(image, _still_format(image), lossless=lossless)
    except UnidentifiedImageError as error:
        raise BrokenDocument("damaged image: its header makes no sense") from error
    except (OSError, SyntaxError, EOFError, ValueError, IndexError, zlib.error) as error:
        if "out of memory" in str(error):  # Pillow's error for a codec's failed malloc
            raise MemoryError(str(error)) from error
        raise BrokenDocument(f"damaged image: {error}") from error


def _still_format(image: Image.Image) -> str:
    # MPO is a JPEG file with more images behind the first.
    return "JPEG" if image.format in {"MPO", "JPEG"} else str(image.format)


def _count_metadata(image: Image.Image, removed: Removed) -> None:
    names = {"exif": "EXIF", "xmp": "XMP", "icc_profile": "colour profile", "comment": "comment"}
    for key, name in names.items():
        removed[name] += bool(image.info.get(key))
    removed["text"] += len(getattr(image, "text", None) or ())


def _encode(image: Image.Image, kind: str, *, lossless: bool) -> bytes:
    shown = [image] if kind == "JPEG" else ImageSequence.Iterator(image)
    frames = [_bare(frame) for frame in shown]
    options = _encoder_options(image, kind, frames[0])
    if kind == "WEBP":
        options |= {"lossless": lossless}
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": frames[1:]}
        options |= {} if kind == "TIFF" else _timing(image, frames)
    clean = io.BytesIO()
    frames[0].save(clean, kind, **options)
    return clean.getvalue()


def _bare(frame: Image.Image) -> Image.Image:
    """Copy the pixels, and of what stands beside them only transparency and timing."""
    # The camera's orientation is in the EXIF, which goes: turn the pixels instead.
    bare = ImageOps.exif_transpose(frame)
    bare.info = {key: bare.info[key] for key in ("transparency", "duration") if key in bare.info}
    return bare


def _encoder_options(image: Image.Image, kind: str, first: Image.Image) -> dict[str, Any]:
    if kind == "JPEG":
        return {"quality": 90, "progressive": bool(image.info.get("progressive"))}
    if kind == "TIFF":
        return {"compression": "group4" if first.mode == "1" else "tiff_adobe_deflate"}
    return {"quality": 85, "method": 2} if kind == "WEBP" else {}


def _timing(image: Image.Image, frames: list[Image.Image]) -> dict[str, Any]:
    durations = [round(frame.info.get("duration", 100)) for frame in frames]
    # GIF: frames come whole out of the decoder, so each one replaces what was there (2).
    disposal = {"disposal": 2} if image.format == "GIF" else {}
    return {"duration": durations, "loop": image.info.get("loop", 0)} | disposal
