"""The real documents of the corpus, by kind, and the clean ones that the worker makes of them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pikepdf = pytest.importorskip("pikepdf")
etree = pytest.importorskip("lxml.etree")
Image = pytest.importorskip("PIL.Image")
ImageChops = pytest.importorskip("PIL.ImageChops")
ImageOps = pytest.importorskip("PIL.ImageOps")
ImageSequence = pytest.importorskip("PIL.ImageSequence")
ImageStat = pytest.importorskip("PIL.ImageStat")

TESTS = Path(__file__).resolve().parents[1]
CORPUS = TESTS / "corpus"
sys.path.insert(0, str(TESTS.parent / "scripts" / "examples"))
disarm = importlib.import_module("disarm")
hostile_documents = importlib.import_module("hostile_documents")

DOCUMENTS = sorted(CORPUS.glob("*/*"))
IMAGES = ("png", "jpeg", "gif", "tiff", "webp", "bmp")
OOXML = ("docx", "docm", "xlsx", "xlsm", "pptx", "pptm")
ODF = ("odt", "ods", "odp", "odg")
KINDS = {".jpg": "jpeg", ".tif": "tiff", ".svg": "xml", ".xhtml": "xml", ".conf": "xml", ".fodt": "xml"}


def kind_by_name(path: Path) -> str:
    return KINDS.get(path.suffix, path.suffix.lstrip("."))


def of_kind(*kinds: str) -> list[Path]:
    return [path for path in DOCUMENTS if kind_by_name(path) in kinds]


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}/{path.name}")


_CLEAN: dict[Path, bytes] = {}


def cleaned(path: Path) -> bytes:
    """The clean document; each is made once."""
    if path not in _CLEAN:
        _CLEAN[path] = disarm.disarm_bytes(path)
    return _CLEAN[path]


def disarmed(data: bytes, folder: Path) -> bytes:
    source = folder / "input"
    source.write_bytes(data)
    clean: bytes = disarm.disarm_bytes(source)
    return clean
