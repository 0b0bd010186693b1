"""``Limits`` and the parsing of sizes and durations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwsandbox import Limits
from gwsandbox.model.limits import check_number, parse_duration, parse_share, parse_size

SIZES = {
    "0": 0,
    "1048576": 1024**2,
    "512MiB": 512 * 1024**2,
    "512 MiB": 512 * 1024**2,
    " 2G ": 2 * 1024**3,
    "2g": 2 * 1024**3,
    "2GB": 2 * 1000**3,
    "2gb": 2 * 1000**3,
    "1K": 1024,
    "1KiB": 1024,
    "1kB": 1000,
    "1T": 1024**4,
    "1PB": 1000**5,
    "1.5KiB": 1536,
    "0.5K": 512,
    "7B": 7,
    "7b": 7,
    "1Mi": 1024**2,
}
DURATIONS = {
    "0": 0.0,
    "5": 5.0,
    "5s": 5.0,
    "1.5": 1.5,
    "500ms": 0.5,
    "2m": 120.0,
    "2 min": 120.0,
    "1h": 3600.0,
    "1d": 86400.0,
    "3sec": 3.0,
    " 4S ": 4.0,
    "1h30m": 5400.0,
    "1H 30Min": 5400.0,
    "1d 2h 3m 4s 500ms": 93784.5,
    "1.5h": 5400.0,
    "2 hours 1minute": 7260.0,
    "10 seconds": 10.0,
}
NOT_SIZES = [
    "",
    " ",
    "MiB",
    "-1",
    "+1",
    "1e3",
    "1,5G",
    "5s",
    "1 2",
    "0x10",
    "1EiB",
    "1iB",
    "5i",
    "nan",
    "inf",
    "1..5G",
    ".5G",
]
NOT_DURATIONS = [
    "",
    "s",
    "-1s",
    "+1s",
    "1e3",
    "5 5",
    "5MiB",
    "1w",
    "nan",
    "inf",
    "5\u017f",
    "1:30",
    "1h30",
    "30 1h",
    "h30m",
]

SIZE_FIELDS = ["memory", "swap", "file_size", "output"]
COUNT_FIELDS = ["pids", "open_files"]
SECONDS_FIELDS = ["wall_seconds", "cpu_seconds"]
ALL_FIELDS = [*SIZE_FIELDS, *COUNT_FIELDS, *SECONDS_FIELDS, "cpus"]


@pytest.mark.parametrize(("text", "expected"), SIZES.items())
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(("text", "expected"), DURATIONS.items())
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(("text", "expected"), {"0.5": 0.5, "2": 2.0, "200%": 2.0, " 12.5 % ": 0.125}.items())
def test_shares(text: str, expected: float) -> None:
    assert parse_share(text) == expected


@pytest.mark.parametrize("text", ["", "%", "half", "1,5", "50%%", "50 percent"])
def test_what_is_no_share_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--cpus: .* is not a share of CPUs; write for example 0.5 or 50%"):
        parse_share(text, "--cpus")


@pytest.mark.parametrize("text", NOT_SIZES)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--memory: .* is not a size; write for example 512MiB"):
        parse_size(text, "--memory")


@pytest.mark.parametrize("text", NOT_DURATIONS)
def test_what_is_no_duration_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--timeout: .* is not a duration; write for example 5s"):
        parse_duration(text, "--timeout")


@pytest.mark.parametrize(("parse", "what"), [(parse_size, "size"), (parse_duration, "duration")])
@given(text=st.text(max_size=30))
def test_any_text_is_of_its_kind_or_a_value_error(parse: Callable[[str], float], what: str, text: str) -> None:
    try:
        assert parse(text) >= 0
    except ValueError as error:
        assert what in str(error)


LIKE_A_SIZE = st.from_regex(r"\A\s*\d{1,400}(\.\d{1,9})?\s*([kmgtp]i?)?b?\s*\Z")
LIKE_A_DURATION = st.from_regex(r"(?i)\A\s*\d{1,400}(\.\d{1,9})?\s*(ms|s|sec|m|min|h|d|)\s*\Z")


@pytest.mark.parametrize(("texts", "names"), [(LIKE_A_SIZE, SIZE_FIELDS), (LIKE_A_DURATION, SECONDS_FIELDS)])
@given(data=st.data())
def test_whatever_looks_right_is_taken_or_refused_by_name(
    texts: st.SearchStrategy[str], names: Sequence[str], data: st.DataObject
) -> None:
    text, name = data.draw(texts), data.draw(st.sampled_from(names))
    try:
        assert getattr(Limits(**{name: text}), name) >= 0
    except ValueError as error:
        assert name in str(error)


@given(st.integers(0, 2**62), st.sampled_from(["", "B", "K", "KiB", "M", "MiB", "G", "GiB"]))
def test_a_whole_size_is_exact(number: int, unit: str) -> None:
    power = " kmg".index(unit[:1].lower() or " ") if unit != "B" else 0
    assert parse_size(f"{number}{unit}") == number * 1024**power


@pytest.mark.parametrize("name", ALL_FIELDS)
@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, -math.inf, pytest.param(-(10**400), id="-huge")])
def test_negative_nan_and_infinite_are_value_errors_that_name_the_field(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})


@pytest.mark.parametrize("name", ALL_FIELDS)
@pytest.mark.parametrize("value", [True, False, b"1", [1], {}, 1j, object()])
def test_what_is_no_number_is_a_type_error_that_names_the_field(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        Limits(**{name: value})


@pytest.mark.parametrize("name", [*COUNT_FIELDS, "cpus"])
def test_text_where_there_is_no_unit_is_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        Limits(**{name: "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(pytest.param(name, 10**400, id=f"{name}-huge") for name in ALL_FIELDS),
        *((name, 2**63) for name in SIZE_FIELDS),
        *((name, 1.5) for name in [*SIZE_FIELDS, *COUNT_FIELDS]),
        *((name, 2**31) for name in COUNT_FIELDS),
        *((name, 1e10) for name in SECONDS_FIELDS),
        pytest.param("memory", "9" * 400 + ".5G", id="memory-fraction"),
        pytest.param("memory", "9" * 5000, id="memory-digits"),
        ("cpus", 0.001),
        ("cpus", 1e9),
    ],
)
def test_absurd_values_are_value_errors_that_name_the_field(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})


def test_texts_become_numbers() -> None:
    limits = Limits(memory="1GiB", swap="1M", wall_seconds="500ms", cpu_seconds="1m", file_size="1kB", output="2K")
    assert limits == Limits(
        memory=1024**3, swap=1024**2, wall_seconds=0.5, cpu_seconds=60.0, file_size=1000, output=2048
    )


def test_is_frozen_hashable_and_keyword_only() -> None:
    limits = Limits(memory=1)
    with pytest.raises(FrozenInstanceError):
        limits.memory = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Limits(1)  # type: ignore[misc]
    assert {limits, Limits(memory=1), Limits()} == {Limits(memory="1B"), Limits()}


def test_zero_is_no_limit_and_none_is_not_said() -> None:
    assert Limits(memory=0, pids=None, cpus=0.5).requested() == {"cpus": 0.5}


def test_overriding_goes_field_by_field() -> None:
    outer = Limits(memory=100, wall_seconds=5, pids=3)
    assert outer.overridden_by(None) is outer
    assert outer.overridden_by(Limits()) is outer
    assert outer.overridden_by(Limits(memory=7, wall_seconds=0)) == Limits(memory=7, wall_seconds=0, pids=3)
    assert outer.overridden_by(Limits(wall_seconds=0)).requested() == {"memory": 100, "pids": 3}


_some_limits = st.builds(
    Limits,
    memory=st.none() | st.integers(0, 2**40),
    wall_seconds=st.none() | st.floats(0, 1e6),
    pids=st.none() | st.integers(0, 1000),
    cpus=st.none() | st.just(0.0) | st.floats(0.01, 64),
)


@given(_some_limits, _some_limits, _some_limits)
def test_overriding_is_associative(a: Limits, b: Limits, c: Limits) -> None:
    assert a.overridden_by(b).overridden_by(c) == a.overridden_by(b.overridden_by(c))


@given(_some_limits)
def test_what_is_asked_is_what_is_not_none_or_zero(limits: Limits) -> None:
    asked = limits.requested()
    assert all(asked.values())
    assert Limits(**asked) == Limits(**{name: value for name in ALL_FIELDS if (value := getattr(limits, name))})


@given(st.integers() | st.floats())
def test_a_checked_number_is_finite_and_not_negative(value: float) -> None:
    try:
        assert 0 <= check_number(value, "it") < math.inf
    except ValueError as error:
        assert str(error).startswith("it ")


@pytest.mark.parametrize("name", ALL_FIELDS)
@pytest.mark.parametrize("make", [np.int64, np.uint8, np.float32, np.float64, Fraction], ids=str)
def test_numbers_of_other_kinds_become_plain_ones(name: str, make: Any) -> None:
    value = getattr(Limits(**{name: make(2)}), name)
    assert value == 2
    assert type(value) in {int, float}


def test_a_share_of_cpus_as_a_percentage() -> None:
    assert Limits(cpus="150%").requested() == {"cpus": 1.5}
