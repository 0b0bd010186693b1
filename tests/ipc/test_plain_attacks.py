"""What an enemy writes as plain data: it is refused, in bounded memory and time, and nothing of it runs."""

from __future__ import annotations

import datetime as dt
import struct
import sys
import tracemalloc
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from plain_values import BUILT_IN, RETURNS, Broken, Colour, Page, through

from gwsandbox.ipc import plain
from gwsandbox.ipc.plain_encoder import encode
from gwsandbox.ipc.plain_format import BUILTIN_ERRORS, MOST_MEMORY, Tag
from gwsandbox.model.errors import TransferError


def length(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(value: str) -> bytes:
    return length(len(value.encode())) + value.encode()


def refuse(data: bytes, message: str, returns: tuple[type, ...] = ()) -> None:
    with pytest.raises(TransferError, match=f"^the result is not plain data, as results='plain' asks for: .*{message}"):
        plain.decode(data, returns)


EMPTY_TUPLE, NONE = bytes([Tag.TUPLE]) + length(0), bytes([Tag.NONE])
EMPTY_DICT = bytes([Tag.DICT]) + length(0)
MALFORMED: list[tuple[bytes, str]] = [
    (b"", "ends within a value"),
    (b"\xff", "no tag 255"),
    (NONE * 2, "something follows"),
    (bytes([Tag.INT]) + b"1234567", "ends within a value"),
    (bytes([Tag.LIST]) + length(1 << 62), "claims more than there is"),
    (bytes([Tag.STR]) + length(1 << 63), "claims more than there is"),
    (bytes([Tag.STR]) + length(1) + b"\xff", "UnicodeDecodeError"),
    (bytes([Tag.DICT]) + length(1) + bytes([Tag.LIST]) + length(0) + NONE, "a key is of a type"),
    (bytes([Tag.SET]) + length(1) + EMPTY_DICT, "a key is of a type"),
    (bytes([Tag.SET]) + length(2) + NONE * 2, "stands there twice"),
    (bytes([Tag.DICT]) + length(2) + NONE * 4, "stands there twice"),
    (bytes([Tag.DATE]) + struct.pack("<HBB", 2023, 2, 30), "ValueError"),
    (bytes([Tag.TIME]) + struct.pack("<BBBIB", 25, 0, 0, 0, 0) + NONE, "ValueError"),
    (bytes([Tag.TIME]) + struct.pack("<BBBIB", 1, 0, 0, 0, 0) + bytes([Tag.TRUE]), "a bool stands where"),
    (bytes([Tag.TIMEDELTA]) + struct.pack("<qqq", 1 << 62, 0, 0), "OverflowError"),
    (bytes([Tag.DECIMAL]) + text("1_0"), "a decimal number is none"),
    (bytes([Tag.DECIMAL]) + text("\u0661"), "a decimal number is none"),
    (bytes([Tag.FRACTION]) + length(1) + b"\x01" + length(1) + b"\x00", "ZeroDivisionError"),
    (bytes([Tag.LONG]) + length(1 << 17) + bytes(1 << 17), "more than 65536 bytes"),
    (bytes([Tag.DECLARED]) + struct.pack("<H", 99), "was not declared"),
    (bytes([Tag.DECLARED]) + struct.pack("<H", 2) + length(1) + text("mro"), "KeyError"),  # Colour
    (bytes([Tag.DECLARED]) + struct.pack("<H", 2) + length(1) + text("__class__"), "KeyError"),
    (bytes([Tag.DECLARED]) + struct.pack("<H", 2) + length(0), "has one name"),
    (bytes([Tag.ERROR]) + text("SystemExit") + EMPTY_TUPLE + EMPTY_DICT, "KeyError"),
    (bytes([Tag.ERROR]) + text("eval") + EMPTY_TUPLE + EMPTY_DICT, "KeyError"),
    (bytes([Tag.ERROR]) + text("ExceptionGroup") + EMPTY_TUPLE + EMPTY_DICT, "TypeError"),
    (bytes([Tag.ERROR]) + text("ValueError") + NONE + EMPTY_DICT, "a NoneType stands where a tuple has to"),
    (bytes([Tag.ARRAY]) + text("|O8") + struct.pack("<BBQ", 0, 1, 1) + length(8) + bytes(8), "no plain type"),
    (bytes([Tag.ARRAY]) + text("<f8,<f8") + struct.pack("<BBQ", 0, 1, 1) + length(16) + bytes(16), "no plain type"),
    (bytes([Tag.ARRAY]) + text("<f8") + struct.pack("<BBQ", 0, 1, 2) + length(8) + bytes(8), "longer or shorter"),
    (bytes([Tag.ARRAY]) + text("<f8") + struct.pack("<BB", 0, 64), "more than 32 dimensions"),
    (bytes([Tag.ARRAY]) + text("<f8") + struct.pack("<BBQQ", 0, 2, 1 << 63, 2) + length(0), "longer or shorter"),
    (bytes([Tag.ARRAY]) + text("|b1") + struct.pack("<BBQ", 0, 1, 1) + length(1) + b"\x02", "no value of its type"),
    (bytes([Tag.ARRAY]) + text("<U1") + struct.pack("<BBQ", 0, 1, 1) + length(4) + b"\xff" * 4, "no value of its type"),
    (bytes([Tag.SCALAR]) + text("<U1") + length(4) + b"\x00\x00\x11\x00", "no value of its type"),
]


@pytest.mark.parametrize(("data", "message"), MALFORMED, ids=[message for _, message in MALFORMED])
def test_what_no_encoder_writes_is_refused(data: bytes, message: str) -> None:
    refuse(data, message, RETURNS)


@pytest.mark.parametrize("kind", [UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError])
@pytest.mark.parametrize(("start", "end"), [(-(1 << 40), 1 - (1 << 40)), (1 << 40, (1 << 40) + 1), (0, 99), (2, 1)])
def test_an_error_that_points_out_of_its_text_is_refused(kind: type[Exception], start: int, end: int) -> None:
    """The interpreter reads there when it is printed."""
    body: Any = b"abc" if kind is UnicodeDecodeError else "abc"
    args = (body, start, end, "why") if kind is UnicodeTranslateError else ("utf-8", body, start, end, "why")
    data = bytes([Tag.ERROR]) + text(kind.__name__) + b"".join(encode(args)) + EMPTY_DICT
    refuse(data, "points out of its text")


def test_every_prefix_of_a_value_is_refused() -> None:
    data = b"".join(encode([1, "text", {"a": (1.5, b"x")}, np.arange(3), Page(1), Broken("a", 1), Colour.RED], RETURNS))
    for end in range(len(data)):
        with pytest.raises(TransferError):
            plain.decode(data[:end], RETURNS)


def test_keys_that_are_made_to_collide_are_refused() -> None:
    """All have one hash: to put n of them into a dict takes n² comparisons."""
    same_hash = [1 + number * sys.hash_info.modulus for number in range(50)]
    assert len(set(map(hash, same_hash))) == 1
    for value in (dict.fromkeys(same_hash), set(same_hash), {(number,) for number in same_hash}):
        refuse(b"".join(encode(value)), "mistaken for each other")
    many = {float(number): None for number in range(5000)}
    assert through(many) == many


def repeated(piece: bytes, count: int) -> bytes:
    return bytes([Tag.LIST]) + length(count) + piece * count


ENTRY = bytes([Tag.INT]) + struct.pack("<q", 1)
BOMBS = {
    "empty sets": bytes([Tag.SET]) + length(0),
    "empty dicts": EMPTY_DICT,
    "sets of one": bytes([Tag.SET]) + length(1) + ENTRY,
    "dicts of one": EMPTY_DICT[:1] + length(1) + ENTRY + NONE,
    "nothings": NONE,
    "numbers": bytes([Tag.INT]) + struct.pack("<q", 1 << 40),
    "paths": bytes([Tag.PATH]) + text("a/b/c/d"),
    "wide texts": bytes([Tag.STR]) + text("a" * 200 + "\U0001f600"),
    "decimals": bytes([Tag.DECIMAL]) + text("1.5"),
    "fractions": bytes([Tag.FRACTION]) + length(1) + b"\x01" + length(1) + b"\x02",
    "ids": bytes([Tag.UUID]) + bytes(16),
    "arrays": bytes([Tag.ARRAY]) + text("<f8") + struct.pack("<BBQ", 0, 1, 0) + length(0),
    "scalars": bytes([Tag.SCALAR]) + text("<f8") + length(8) + bytes(8),
    "times": bytes([Tag.TIME]) + struct.pack("<BBBIB", 1, 2, 3, 4, 0) + bytes([Tag.TIMEZONE]) + NONE + bytes(24),
    "errors": bytes([Tag.ERROR]) + text("ValueError") + EMPTY_TUPLE + EMPTY_DICT,
    "points": bytes([Tag.DECLARED]) + struct.pack("<H", 4) + NONE * 2,
    "books": bytes([Tag.DECLARED]) + struct.pack("<H", 6) + NONE,
    "broken": bytes([Tag.DECLARED]) + struct.pack("<H", 7) + EMPTY_TUPLE + EMPTY_DICT,
    "colours": bytes([Tag.DECLARED]) + struct.pack("<H", 2) + length(1) + text("RED"),
}


@pytest.mark.parametrize("piece", BOMBS.values(), ids=BOMBS)
def test_a_value_takes_no_more_memory_than_is_counted(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound of a mebibyte, so that each kind of value reaches it."""
    most = 1 << 20
    monkeypatch.setattr(plain, "MOST_MEMORY", most)
    plain.decode(repeated(piece, 2), RETURNS)  # what is made once
    count = 1 << 15
    data = repeated(piece, count)
    tracemalloc.start()
    try:
        plain.decode(data, RETURNS)
    except TransferError as error:
        assert "more than its own length" in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= most + len(data) + 65536, f"{peak / (most + len(data)):.2f} of what is counted"


def test_the_bound_leaves_room_for_what_people_return() -> None:
    assert MOST_MEMORY == 256 << 20
    assert through(list(range(200_000))) == list(range(200_000))


def test_decoding_imports_nothing() -> None:
    data = b"".join(
        encode([Decimal(1), UUID(int=1), np.zeros(1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC), *BUILT_IN], RETURNS)
    )
    before = set(sys.modules)
    plain.decode(data, RETURNS)
    assert set(sys.modules) == before


def test_no_exception_that_ends_an_interpreter_is_known() -> None:
    assert not {"SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseExceptionGroup"} & BUILTIN_ERRORS.keys()
