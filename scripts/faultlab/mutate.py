"""Bytes and texts that are nearly right, or not at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_BYTES = (b"", b"\0", b"\n", b"\xff", b"-", b"=", b" ", b"0", b"9" * 30, b"\xed\xa0\x80", b"\x80", b"[" * 40, b"max")
_LONGEST = 1 << 16


def mutated(rng: random.Random, data: bytes) -> bytes:
    """``data`` with up to four changes."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 4))):
        data = rng.choice(_CHANGES)(rng, data)[:_LONGEST]
    return data


def _flip(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _replace(rng: random.Random, data: bytes) -> bytes:
    first, last = _part(rng, data)
    return data[:first] + rng.choice(_BYTES) + data[last:]


def _insert(rng: random.Random, data: bytes) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + rng.choice(_BYTES) + data[place:]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    first, last = _part(rng, data)
    return data[:last] + data[first:last] * rng.choice((1, 2, 9)) + data[last:]


def _noise(rng: random.Random, data: bytes) -> bytes:
    first, last = _part(rng, data)
    return data[:first] + rng.randbytes(min(last - first, 64)) + data[last:]


def _part(rng: random.Random, data: bytes) -> tuple[int, int]:
    first = rng.randint(0, len(data))
    return first, min(len(data), first + rng.choice((1, 1, 2, 4, 8, 100)))


_CHANGES: Sequence[Callable[[random.Random, bytes], bytes]] = (_flip, _flip, _replace, _insert, _cut, _repeat, _noise)
