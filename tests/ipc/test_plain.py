"""Plain data: every value comes back as it was, everything else is refused by name, and nothing but data comes out."""

from __future__ import annotations

import collections
import datetime as dt
import math
import struct
import sys
import zoneinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_values import BUILT_IN, RETURNS, Book, Broken, Colour, Page, Point, Rights, Undeclared, called, through

from gwsandbox.ipc import plain
from gwsandbox.ipc.plain_encoder import encode
from gwsandbox.ipc.plain_format import DEEPEST
from gwsandbox.model.declared import check_declared, field_names
from gwsandbox.model.errors import GuestSetupError, TransferError


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
    (Page(1), r"is of type plain_values.Page, .*returns=\(Page,\)"),
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
