"""Plain data: every value comes back as it was, everything else is refused by name, and nothing but data comes out."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import math
import struct
import sys
import tracemalloc
import zoneinfo
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwsandbox.ipc import plain
from gwsandbox.ipc.plain_encoder import encode
from gwsandbox.ipc.plain_format import BUILTIN_ERRORS, DEEPEST, MOST_MEMORY, Tag
from gwsandbox.model.declared import check_declared, field_names
from gwsandbox.model.errors import GuestSetupError, TransferError


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: Any = 0


@dataclass(frozen=True, slots=True)
class Page:
    number: int
    text: str = ""
    parts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        called.append("__post_init__")


@dataclass
class Book:
    pages: list[Page]


class Broken(Exception):
    def __init__(self, where: str, how: int) -> None:
        super().__init__(f"{where} is broken")
        self.how = how
        called.append("__init__")


class Undeclared(Exception):
    pass


RETURNS = (Colour, Rights, Point, Page, Book, Broken)
called: list[str] = []


def through(value: object, returns: tuple[type, ...] = ()) -> Any:
    return plain.decode(b"".join(encode(value, returns)), returns)


def same(left: Any, right: Any) -> bool:  # noqa: PLR0911 - a table
    """Equal, of the same types all the way down, NaN and minus zero included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, Page | Book):
        return all(same(getattr(left, name), getattr(right, name)) for name in field_names(left))
    if isinstance(left, Decimal):
        return bool(left.as_tuple() == right.as_tuple())
    return bool(left == right)


zones = st.builds(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)), st.integers(-1439, 1439))
texts = st.text(st.characters(exclude_categories=()))
hashable = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 2000), 1 << 2000)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | texts
    | st.binary()
    | st.dates()
    | st.times(timezones=st.none() | zones)
    | st.datetimes(timezones=st.none() | zones)
    | st.timedeltas()
    | zones
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
    | st.builds(PurePosixPath, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
    | st.sampled_from([*Colour, *Rights, Rights(0), Rights.READ | Rights.WRITE])
)
leaves = hashable | st.floats() | st.complex_numbers() | st.decimals() | st.builds(bytearray, st.binary())
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.builds(tuple, st.lists(inner, max_size=5))
        | st.dictionaries(hashable | st.tuples(hashable, hashable), inner, max_size=5)
        | st.sets(hashable, max_size=5)
        | st.frozensets(hashable, max_size=5)
        | st.builds(Point, inner, inner)
        | st.builds(Page, inner, inner, st.lists(inner, max_size=3))
        | st.builds(lambda pages: Book(pages), inner)
    ),
    max_leaves=30,
)


@given(values)
def test_every_value_comes_back_as_it_was(value: object) -> None:
    assert same(through(value, RETURNS), value)


def test_nothing_of_a_declared_type_is_called() -> None:
    sent = [Page(1, "text", [Point(1, 2)]), Broken("a", 2)]
    called.clear()
    page, error = through(sent, RETURNS)
    assert called == []
    assert (page, page.parts) == (sent[0], [Point(1, 2)])
    assert (type(error), error.args, error.how) == (Broken, ("a is broken",), 2)


def test_a_path_of_this_system_and_a_named_zone() -> None:
    assert type(through(Path("/a/b"))) is type(Path("/a/b"))
    zone = dt.timezone(dt.timedelta(hours=1), "ours")
    assert repr(through(dt.datetime(2024, 1, 2, 3, 4, 5, 6, zone, fold=1))) == repr(
        dt.datetime(2024, 1, 2, 3, 4, 5, 6, zone, fold=1)
    )


# --- NumPy ----------------------------------------------------------------------------------------------

ARRAYS = [
    np.arange(12, dtype="i4").reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(24, dtype="u1").reshape(2, 3, 4)[:, ::2, 1:],
    np.array([True, False]),
    np.array([1 + 2j], dtype="c8"),
    np.array(["a", "bcd", "\U0010ffff"]),
    np.array([b"a", b"bcd"]),
    np.array(["2024-01-02", "NaT"], dtype="M8[D]"),
    np.array([3, 4], dtype="m8[25s]"),
    np.array([1, 2], dtype=">i2"),
    np.array(["xy"], dtype=">U2"),
    np.array(5.0, dtype="f2"),
    np.zeros((0, 3)),
    np.zeros(100_000),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}{array.shape}")
def test_an_array_comes_back_as_it_was_and_can_be_written_to(array: Any) -> None:
    found = through(array)
    assert (type(found), found.dtype, found.shape) == (np.ndarray, array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)
    assert found.flags.writeable
    assert found.flags.f_contiguous == (array.flags.f_contiguous or found.ndim < 2)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}{array.shape}")
def test_a_scalar_comes_back_as_it_was(array: Any) -> None:
    for scalar in array.reshape(-1)[:3]:
        found = through(scalar)
        assert (type(found), found.dtype) == (type(scalar), scalar.dtype)
        np.testing.assert_array_equal(found, scalar)


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.zeros(2, dtype=[("a", "i4")]),
        np.zeros(2, dtype="f16"),
        np.ma.array([1]),
        np.zeros(2, dtype="V3"),
    ],
    ids=lambda value: str(value.dtype),
)
def test_an_array_that_is_not_plain_is_refused(value: Any) -> None:
    with pytest.raises(TransferError, match="numpy"):
        encode(value)


def test_an_array_is_refused_where_numpy_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(encode(np.zeros(3)))
    monkeypatch.delitem(sys.modules, "numpy")
    with pytest.raises(TransferError, match="has not imported numpy"):
        plain.decode(data)
    assert "numpy" not in sys.modules


# --- what is refused ------------------------------------------------------------------------------------

REFUSED: list[tuple[Any, str]] = [
    (object(), "is of type object, .*return plain data made of it"),
    ([1, {"key": object()}], r"the result\[1\]\['key'\] is of type object"),
    (collections.OrderedDict(a=1), r"is of type collections.OrderedDict, .*return dict\(value\)"),
    (Colour.RED, r"declare it: Task\(…, returns=\(Colour,\)\)"),
    (Page(1), r"is of type test_plain.Page, .*returns=\(Page,\)"),
    (Point(1), r"returns=\(Point,\)"),
    (Undeclared(), r"returns=\(Undeclared,\)"),
    ({Point(1): 2}, r"the result \(a key\)"),
    (print, "is of type builtin_function_or_method"),
    (int, "is of type type"),
    (range(3), "is of type range"),
    (
        dt.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
        r"result.tzinfo is of type zoneinfo.ZoneInfo, .*astimezone",
    ),
    (1 << (1 << 20), "is a number of 131073 bytes"),
    (Fraction(1, 1 << (1 << 16)), "is a number of 8193 bytes"),
    (KeyboardInterrupt(), "is of type KeyboardInterrupt"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_not_plain_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(TransferError, match=message):
        encode(value)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_what_is_too_deep_or_holds_itself_is_refused() -> None:
    assert through(nested(DEEPEST - 2)) == nested(DEEPEST - 2)
    endless: list[Any] = []
    endless.append(endless)
    for value in (nested(DEEPEST), endless):
        with pytest.raises(TransferError, match="nested deeper than 100 containers, or holds itself"):
            encode(value)


@pytest.mark.parametrize("wrong", [int, object, KeyboardInterrupt, 5, "Page", collections.OrderedDict])
def test_only_some_types_can_be_declared(wrong: Any) -> None:
    with pytest.raises(TypeError, match="dataclasses, enums, named tuples and exceptions; not"):
        check_declared((wrong,))
    with pytest.raises(TypeError, match="returns must be"):
        check_declared(wrong)


# --- exceptions -----------------------------------------------------------------------------------------


BUILT_IN = [
    ValueError("a", 1),
    FileNotFoundError(2, "No such file", "/x"),
    OSError(5, "Input/output error"),
    OSError("text only"),
    KeyError("k"),
    MemoryError(),
    StopIteration(3),
    UnicodeDecodeError("utf-8", b"abc", 1, 2, "why"),
    UnicodeEncodeError("ascii", "abc", 0, 3, "why"),
    UnicodeTranslateError("abc", 0, 1, "why"),
    ZeroDivisionError("division by zero"),
    RecursionError("deep"),
]


@pytest.mark.parametrize("error", BUILT_IN, ids=repr)
def test_an_exception_that_is_built_in_comes_as_itself(error: Exception) -> None:
    error.add_note("a note")
    found = through(error)
    assert (type(found), found.args, str(found)) == (type(error), error.args, str(error))
    assert found.__notes__ == ["a note"]
    assert getattr(found, "filename", None) == getattr(error, "filename", None)


def test_a_group_of_exceptions_comes_as_itself() -> None:
    found = through(ExceptionGroup("several", [ValueError(1), KeyError("k")]))
    assert repr(found) == "ExceptionGroup('several', [ValueError(1), KeyError('k')])"


def test_an_error_of_syntax_keeps_its_text() -> None:
    try:
        compile("a b", "x.py", "exec")
    except SyntaxError as error:
        found = through(error)
        assert (type(found), str(found)) == (SyntaxError, str(error))


def test_a_step_of_ours_that_failed_is_known() -> None:
    error = GuestSetupError("guest step 'x' failed", value="why", errno=13, remedy="do this")
    found = through(error)
    assert (type(found), str(found), found.errno) == (GuestSetupError, str(error), 13)


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt("now"), SystemExit(3), ValueError(object), BaseExceptionGroup("", [KeyboardInterrupt()])],
    ids=repr,
)
def test_any_other_exception_is_refused(error: BaseException) -> None:
    with pytest.raises(TransferError, match="the result"):
        encode(error)


def test_a_declared_exception_with_what_is_not_plain_is_refused() -> None:
    error = Broken("x", 3)
    error.how = object()  # type: ignore[assignment]
    with pytest.raises(TransferError, match=r"the result.__dict__\['how'\] is of type object"):
        encode(error, RETURNS)


# --- what an enemy writes -------------------------------------------------------------------------------


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
