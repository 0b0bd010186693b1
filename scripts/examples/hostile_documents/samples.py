"""Documents of the corpus, and damaged copies of them."""

from __future__ import annotations

import random
from pathlib import Path

CORPUS = Path(__file__).resolve().parents[3] / "tests" / "corpus"


def sample(name: str) -> bytes:
    """A document of the corpus."""
    return (CORPUS / name).read_bytes()


def cut(name: str) -> bytes:
    """The first two thirds of a document."""
    original = sample(name)
    return original[: len(original) * 2 // 3]


def flipped(name: str, *, every: int) -> bytes:
    """A document with one bit flipped in about each `every` bytes, the same ones each time, but not in its magic."""
    damaged = bytearray(sample(name))
    chance = random.Random(name)  # noqa: S311 - the same numbers each time
    for _ in range(len(damaged) // every + 1):
        damaged[chance.randrange(16, len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def no_document() -> bytes:
    """Bytes of no kind at all, under a name that promises one."""
    return random.Random(0).randbytes(100_000)  # noqa: S311 - the same bytes each time
