"""Random bytes, and valid encodings that were damaged, through the decoder of plain data: a count of them.

``GWSANDBOX_TEST_FUZZ`` is how many; in millions it takes about a minute each.
"""

from __future__ import annotations

import datetime as dt
import gc
import os
import random
import struct
import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from plain_values import RETURNS, Book, Broken, Colour, Page, Point, Rights
from support import examples

from gwsandbox.ipc import plain
from gwsandbox.ipc.plain_encoder import encode
from gwsandbox.ipc.plain_format import Tag
from gwsandbox.model.errors import TransferError

COUNT = int(os.environ.get("GWSANDBOX_TEST_FUZZ", "0")) or examples(100_000)
SEED = int(os.environ.get("GWSANDBOX_TEST_SEED", "0")) or random.randrange(1 << 32)

ZONE = dt.timezone(dt.timedelta(hours=-3), "ours")
SOUND: list[object] = [
    [None, True, False, 1, -(1 << 70), 1.5, 2j, "text\udc80", b"bytes", bytearray(b"array")],
    {"key": [1, (2, {3, frozenset({4})})], 5: {6: {}}, (7, "x"): 8},
    [
        dt.date(2024, 2, 29),
        dt.time(1, 2, 3, 4, ZONE, fold=1),
        dt.datetime(2024, 1, 2, tzinfo=ZONE),
        dt.timedelta(1, 2, 3),
    ],
    [Decimal("-1.5E+7"), Decimal("NaN123"), Fraction(3, 7), UUID(int=5), Path("/a/b")],
    [np.arange(6).reshape(2, 3), np.array(["a", "bc"]), np.array([True]), np.float32(1), np.array(["NaT"], "M8[ns]")],
    [Colour.RED, Rights.READ | Rights.WRITE, Point(1, 2), Page(1, "two", [3]), Book([]), Broken("where", 1)],
]
WORDS = [0, 1, 2, 7, 8, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def corpus() -> list[bytes]:
    errors = [
        OSError(2, "no", "/x"),
        UnicodeDecodeError("utf-8", b"abc", 0, 1, "why"),
        ExceptionGroup("x", [KeyError()]),
    ]
    found = [b"".join(encode(value, RETURNS)) for value in [*SOUND, *errors]]
    return found + [b"".join(encode(value, RETURNS)) for values in SOUND for value in values]  # type: ignore[attr-defined]


def damaged(chance: random.Random, seeds: list[bytes]) -> Iterator[bytes]:
    """Without an end: pieces of sound encodings with other bytes, lengths and tags, and now and then noise."""
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 5)):
            place = chance.randrange(len(data) + 1)
            match chance.randrange(7):
                case 0:
                    data[place : place + 1] = bytes([chance.randrange(256)])
                case 1:
                    data[place : place + 8] = struct.pack("<Q", chance.choice(WORDS))
                case 2:
                    del data[place : place + chance.randrange(1, 9)]
                case 3:
                    data[place:place] = chance.choice(seeds)
                case 4:
                    data[place : place + 1] = bytes([chance.choice(list(Tag))])
                case 5:
                    data[place:place] = data[: chance.randrange(1, 20)]
                case _:
                    data[place:] = chance.randbytes(chance.randrange(20))
        yield bytes(data)


def hook(event: str, arguments: tuple[object, ...]) -> None:
    if event in WATCHED and watching:
        seen.append((event, arguments))


# What the interpreter does that is more than to make plain objects.
WATCHED = {"import", "exec", "compile", "open", "os.system", "os.exec", "os.fork", "os.spawn", "subprocess.Popen"}
watching = False
seen: list[tuple[str, tuple[object, ...]]] = []


def attempt(data: bytes) -> bool:
    """Whether it was decoded; anything but that and its refusal is let through."""
    global watching
    watching = True
    try:
        plain.decode(data, RETURNS)
    except TransferError:
        return False
    finally:
        watching = False
    return True


def blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.long
def test_no_input_does_more_than_to_be_data_or_to_be_refused() -> None:
    inputs = damaged(random.Random(SEED), corpus())
    tried = decoded = 0
    modules, blocks_early = set(sys.modules), 0
    sys.addaudithook(hook)
    while tried < COUNT:
        data = next(inputs)
        try:
            decoded += attempt(data)
        except BaseException as error:
            raise AssertionError(f"seed {SEED}, input {tried}: {data!r}") from error
        tried += 1
        if tried == COUNT // 10:
            blocks_early = blocks()
    assert tried == COUNT
    assert COUNT / 50 < decoded < COUNT * 49 / 50, f"{decoded} were sound: not much of the decoder was reached"
    assert seen == [], f"seed {SEED}: {seen[:3]}"
    assert set(sys.modules) == modules
    assert blocks() - blocks_early < 2000, f"seed {SEED}: something is kept of every input"
