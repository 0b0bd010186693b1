"""How an exception travels: as it was where that can be, and its class, text, traceback and notes always."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import numpy as np
import pytest
from arrival import raised
from support import MIB

from gwsandbox import RemoteError, RemoteTraceback, SandboxError, TransferError
from gwsandbox.ipc import exception, record


def caught(func: Callable[[], object]) -> BaseException:
    try:
        func()
    except BaseException as error:
        return error
    raise AssertionError("did not raise")


def round_trip(error: BaseException) -> BaseException:
    return raised(error).exception()


# --- as it was -------------------------------------------------------------------------------------------


def test_an_exception_keeps_type_arguments_attributes_and_gets_its_traceback() -> None:
    error = caught(lambda: int("x"))
    error.extra = 5  # type: ignore[attr-defined]
    again = round_trip(error)
    assert (type(again), again.args, again.extra) == (ValueError, error.args, 5)  # type: ignore[attr-defined]
    assert isinstance(again.__cause__, RemoteTraceback)
    assert "invalid literal for int" in str(again.__cause__)


class Takes2(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


class Reply:
    status = 503


class TakesAnObject(Exception):
    """Made again from its ``args`` it raises an AttributeError."""

    def __init__(self, reply: Reply) -> None:
        self.status = reply.status
        super().__init__(f"status {reply.status}")


class MakesItsText(Exception):
    """Made again from its ``args`` it says "unknown: unknown: x"."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown: {name}")


class OnlyKeywords(Exception):
    def __init__(self, *, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __str__(self) -> str:
        return f"because {self.reason}"


class OwnNew(Exception):
    def __new__(cls, name: str) -> Self:
        made = super().__new__(cls, f"new {name}")
        made.name = name  # type: ignore[attr-defined]
        return made


class ForgetsItsParent(Exception):
    def __init__(self, name: str) -> None:
        self.name = name


@dataclass
class Fields(Exception):
    code: int
    text: str = "none"


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class File(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "not here", path)


class Missing(ImportError):
    def __init__(self, what: str) -> None:
        super().__init__(f"no {what}", name=what)


class Coding(UnicodeDecodeError):
    def __init__(self, data: bytes) -> None:
        super().__init__("ascii", data, 0, 1, "too high")


class Exit(SystemExit):
    def __init__(self, why: str) -> None:
        super().__init__(7)
        self.why = why


class Several(ExceptionGroup[Exception]):
    def __new__(cls, found: list[Exception]) -> Self:
        return super().__new__(cls, f"{len(found)} found", found)


class SaysHow(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first}/{second}")
        self.parts = first, second

    def __reduce__(self) -> Any:
        return SaysHow, self.parts


class SetsItsState(Exception):
    def __init__(self, *parts: int) -> None:
        super().__init__(*parts)

    def __setstate__(self, state: dict[str, Any] | None) -> None:
        self.restored = state


@pytest.mark.parametrize(
    "error",
    [
        Takes2(404, "gone"),
        TakesAnObject(Reply()),
        MakesItsText("x"),
        OnlyKeywords(reason="of it"),
        OwnNew("x"),
        ForgetsItsParent("x"),
        Fields(code=5, text="five"),
        Frozen(code=5),
        File("/some/path"),
        Missing("x"),
        Coding(b"\xff"),
        Exit("enough"),
        Several([MakesItsText("a"), KeyError("b")]),
        SaysHow(1, 2),
        OSError(2, "No such file", "/some/path"),
        UnicodeDecodeError("ascii", b"\xff", 0, 1, "too high"),
        SandboxError("step", path="p", errno=5, remedy="r"),
        KeyError("x"),
        StopIteration(5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_arrives_as_it_was_raised_whatever_its_class_makes_of_its_arguments(error: BaseException) -> None:
    again = round_trip(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert {name: str(value) for name, value in vars(again).items()} == {n: str(v) for n, v in vars(error).items()}
    for name in ("errno", "filename", "start", "reason", "code", "value", "name", "exceptions"):
        assert repr(getattr(again, name, None)) == repr(getattr(error, name, None))


def test_a_class_that_sets_its_own_state_does_so() -> None:
    error = SetsItsState(1, 2)
    error.note = "n"  # type: ignore[attr-defined]
    again = round_trip(error)
    assert again.restored == {"note": "n"}  # type: ignore[attr-defined]


def test_exceptions_within_values_and_groups_arrive_as_they_were_too() -> None:
    fd = record.create()
    assert record.write_value(fd, [MakesItsText("x"), {"a": File("/p")}])
    _, inline, _ = record.inspect(fd)
    os.close(fd)
    again = record.read_inline(inline)
    assert str(again[0]) == "unknown: x"
    assert again[1]["a"].filename == "/p"
    group = round_trip(ExceptionGroup("several", [MakesItsText("x"), ExceptionGroup("inner", [File("/p")])]))
    assert isinstance(group, ExceptionGroup)
    assert str(group.exceptions[0]) == "unknown: x"


def test_a_local_class_travels_by_value() -> None:
    class Local(Exception):
        def __init__(self, name: str) -> None:
            super().__init__(f"local {name}")

    again = round_trip(Local("x"))
    assert (type(again).__name__, str(again)) == ("Local", "local x")


def test_an_array_in_an_attribute_arrives() -> None:
    error = ValueError("x")
    error.data = np.arange(100_000)  # type: ignore[attr-defined]
    again = round_trip(error)
    assert np.array_equal(again.data, error.data)  # type: ignore[attr-defined]


def test_an_exception_of_a_chain_and_a_group() -> None:
    def chain() -> None:
        try:
            int("x")
        except ValueError as error:
            raise ExceptionGroup("several", [KeyError(1), TypeError("a")]) from error

    again = round_trip(caught(chain))
    assert isinstance(again, ExceptionGroup)
    assert [type(part) for part in again.exceptions] == [KeyError, TypeError]
    assert "invalid literal" in str(again.__cause__)


# --- what always arrives ---------------------------------------------------------------------------------


class Odd(Exception):
    def __reduce__(self) -> Any:
        raise OSError("will not")


class Leaves(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class Unsayable(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Odd("x"), "Odd: x (the exception itself cannot be sent back: OSError: will not)"),
        (Leaves("x"), "Leaves: x (the exception itself cannot be sent back: SystemExit: 3)"),
        (Unsayable(), "Unsayable: (its text cannot be made)"),
        (ValueError(threading.Lock()), "ValueError: <unlocked _thread.lock object"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_one_that_cannot_travel_has_a_stand_in(error: Exception, text: str) -> None:
    error.add_note("a note")
    again = round_trip(caught(lambda: raise_it(error)))
    assert isinstance(again, RemoteError)
    assert isinstance(again, TransferError)
    assert text in str(again)
    assert "cannot be sent back" in str(again)
    assert again.__notes__ == ["a note"]
    assert "in raise_it" in str(again.__cause__)


def raise_it(error: BaseException) -> None:
    raise error


@contextlib.contextmanager
def module_of_the_guest(source: str) -> Iterator[ModuleType]:
    module = ModuleType("only_in_the_guest")
    sys.modules[module.__name__] = module
    exec(source, module.__dict__)
    try:
        yield module
    finally:
        del sys.modules[module.__name__]


def test_a_class_of_a_module_that_the_caller_lacks() -> None:
    with module_of_the_guest("class Theirs(Exception): pass") as module:
        error = module.Theirs("said so")
        error.add_note("first")
        error.add_note("second")
        found = raised(caught(lambda: raise_it(error)))
    again = found.exception()
    assert isinstance(again, RemoteError)
    assert (again.type_name, again.text) == ("only_in_the_guest.Theirs", "said so")
    assert "No module named 'only_in_the_guest'" in again.reason
    assert again.__notes__ == ["first", "second"]
    assert "raise_it" in str(again.__cause__)
    assert pickle.loads(pickle.dumps(again)).text == "said so"


def test_notes_come_with_a_class_that_drops_its_attributes() -> None:
    error = SaysHow(1, 2)
    error.add_note("a note")
    assert round_trip(error).__notes__ == ["a note"]


def test_a_class_that_refuses_changes_gets_its_cause_and_notes_all_the_same() -> None:
    error = Frozen(5)
    error.__dict__["__notes__"] = ["a note"]
    again = round_trip(error)
    assert isinstance(again, Frozen)
    assert isinstance(again.__cause__, RemoteTraceback)
    assert again.__notes__ == ["a note"]


def test_odd_notes_do_no_harm() -> None:
    error = ValueError("x")
    error.__notes__ = [5, Unsayable()]  # type: ignore[list-item]
    assert raised(error).notes == ("5", "(its text cannot be made)")
    error.__notes__ = 7  # type: ignore[assignment]
    assert raised(error).notes == ()


def test_lone_surrogates_arrive() -> None:
    error = OSError(2, "no \udce9", "caf\udce9")
    found = raised(error)
    assert found.exception().filename == "caf\udce9"  # type: ignore[attr-defined]
    assert found.text == str(error)


# --- bounded ---------------------------------------------------------------------------------------------


def test_an_exception_of_great_length_is_cut() -> None:
    error = ValueError("x" * 5 * MIB)
    error.__notes__ = ["n" * MIB, "lost"]
    again = round_trip(error)
    assert isinstance(again, RemoteError)
    assert "it takes 6 MiB, and the most is 4 MiB" in again.reason
    for text in (again.text, str(again.__cause__), "".join(again.__notes__)):
        assert exception.LONGEST_TEXT <= len(text) < exception.LONGEST_TEXT + 200
        assert "characters are left out here" in text


def test_one_just_short_enough_travels_itself() -> None:
    again = round_trip(ValueError("x" * (exception.LARGEST_PICKLE - 200)))
    assert type(again) is ValueError
    assert len(again.args[0]) == exception.LARGEST_PICKLE - 200


def test_many_notes_are_cut() -> None:
    error = ValueError("x")
    error.__notes__ = [str(n) for n in range(10_000)]
    found = raised(error)
    assert found.notes[0] == "0"
    assert len(found.notes) <= 100
