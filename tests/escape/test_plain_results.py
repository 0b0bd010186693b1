"""Results that are plain: what arrives, what is refused by name, and that a forged record runs nothing in the caller."""

from __future__ import annotations

import enum
import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import BackendName, run_task

from gwsandbox import Command, Hardening, Limits, Outcome, RemoteError, Task, TransferError
from gwsandbox.ipc import record
from gwsandbox.model.verdict import Delivery

PLAIN, PICKLES = Hardening.standard(results="plain"), Hardening.standard()


class Colour(enum.Enum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Page:
    number: int
    colour: Colour


class Broken(Exception):
    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


def identity(value: Any) -> Any:
    return value


def raise_(error: BaseException) -> None:
    raise error


VALUES: list[Any] = [
    None,
    b"bytes",
    [1, "two", 3.0, {"four": (5, {6})}, None, True],
    {"path": Path("/a")},
    "x" * 200_000,
    b"x" * 200_000,
    bytearray(200_000),
    list(range(50_000)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_plain_values_arrive(backend: BackendName, value: Any) -> None:
    result = run_task(backend, Task(identity, (value,)), hardening=PLAIN)
    assert (result.result, type(result.result)) == (value, type(value)), result
    assert result.enforcement.hardening["results"] == "enforced"


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_arrays_arrive(backend: BackendName, size: int) -> None:
    result = run_task(backend, Task(np.arange, (size,)), hardening=PLAIN)
    np.testing.assert_array_equal(result.result, np.arange(size))
    result.result[0] = 5


async def coroutine() -> list[int]:
    return [1, 2]


def test_the_value_of_a_coroutine_arrives(backend: BackendName) -> None:
    assert run_task(backend, Task(coroutine), hardening=PLAIN).result == [1, 2]


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_declared_types_arrive(backend: BackendName, start_method: str) -> None:
    sent = [Page(1, Colour.RED), Point(1, 2)]
    task = Task(identity, (sent,), returns=(Page, Colour, Point))
    assert run_task(backend, task, hardening=PLAIN, start_method=start_method).result == sent


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Page(1, Colour.RED), r"is of type test_plain_results.Page, .*Task\(…, returns=\(Page,\)\)"),
        ([Point(1, 2)], r"the result\[0\] is of type test_plain_results.Point"),
        (object(), "is of type object"),
        (print, "is of type builtin_function_or_method"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_refused_by_name(backend: BackendName, value: Any, message: str) -> None:
    result = run_task(backend, Task(identity, (value,)), hardening=PLAIN)
    assert (result.outcome, result.result) == (Outcome.FAILED, None), result
    with pytest.raises(TransferError, match=message):
        raise result.exception or AssertionError


def test_exceptions_arrive(backend: BackendName) -> None:
    built_in = run_task(backend, Task(raise_, (FileNotFoundError(2, "No such file", "/x"),)), hardening=PLAIN)
    assert repr(built_in.exception) == repr(FileNotFoundError(2, "No such file", "/x"))
    assert "in raise_" in str(built_in.exception.__cause__)  # type: ignore[union-attr]
    declared = run_task(backend, Task(raise_, (Broken("here"),), returns=(Broken,)), hardening=PLAIN)
    assert (type(declared.exception), declared.exception.where) == (Broken, "here")  # type: ignore[union-attr]
    other = run_task(backend, Task(raise_, (Broken("here"),)), hardening=PLAIN)
    assert type(other.exception) is RemoteError, other
    assert (other.exception.type_name, other.exception.text) == ("test_plain_results.Broken", "here")
    assert "in raise_" in str(other.exception.__cause__)
    for end in (SystemExit(3), KeyboardInterrupt()):
        ended = run_task(backend, Task(raise_, (end,)), hardening=PLAIN)
        assert type(ended.exception) is RemoteError, ended


def test_a_limit_is_told_as_before(backend: BackendName) -> None:
    result = run_task(backend, Task(sys.stdin.__class__), hardening=PLAIN)
    assert result.outcome is Outcome.FAILED
    memory = run_task(backend, Task(bytearray, (1 << 40,), limits=Limits(memory="512MiB")), hardening=PLAIN)
    assert isinstance(memory.exception, MemoryError), memory


def test_programs_are_as_before(backend: BackendName) -> None:
    assert run_task(backend, Command(["/bin/echo", "x"]), hardening=PLAIN).result.stdout == b"x\n"
    missing = run_task(backend, Command(["/no/such/program"]), hardening=PLAIN)
    assert isinstance(missing.exception, FileNotFoundError), missing
    assert missing.exit_code == 127


class Bite:
    """Runs code where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def forge(kind: int, body: bytes, size: int) -> None:
    """Leave a record of a pickle, as the task of another run would, and end."""
    for name in os.listdir("/proc/self/fd"):
        with_name = f"/proc/self/fd/{name}"
        if os.path.exists(with_name) and "gwsandbox-result" in os.readlink(with_name):
            os.ftruncate(int(name), 0)
            os.pwrite(int(name), record._small_record(kind, body + bytes(size)), 0)
            os._exit(0)


@pytest.mark.parametrize("size", [0, 200_000])
@pytest.mark.parametrize("kind", [Delivery.VALUE, Delivery.RAISED])
def test_a_forged_record_runs_nothing_in_the_caller(
    backend: BackendName, kind: Delivery, size: int, tmp_path: Path
) -> None:
    bitten = tmp_path / "bitten"
    body = pickle.dumps(Bite(str(bitten)))
    if kind is not Delivery.VALUE:
        from gwsandbox.ipc import exception

        body = exception.pack(ValueError(), dump=lambda _: pickle.dumps(Bite(str(bitten))))
    task = Task(forge, (kind.value, body, size))
    result = run_task(backend, task, hardening=PLAIN)
    assert not result.success, result
    assert not bitten.exists()
    run_task(backend, task, hardening=PICKLES)
    assert bitten.exists(), "a pickle would have run code, and so this test shows nothing"


def take_memory_there() -> None:
    """Of 9 bytes each, and more than 200 in the caller."""
    from gwsandbox.ipc.plain_format import Tag

    piece = bytes([Tag.SET]) + bytes(8)
    count = 4_000_000
    forge(Delivery.VALUE.value, bytes([Tag.LIST]) + count.to_bytes(8, "little") + piece * count, 0)


def test_a_forged_record_takes_little_memory_in_the_caller(backend: BackendName) -> None:
    result = run_task(backend, Task(take_memory_there), hardening=PLAIN)
    assert isinstance(result.exception, TransferError), result
    assert "more than its own length" in str(result.exception)


@pytest.mark.parametrize("wrong", [int, "Page", 5])
def test_what_cannot_be_declared_is_refused_when_the_task_is_made(wrong: Any) -> None:
    with pytest.raises(TypeError, match="returns "):
        Task(identity, returns=(wrong,))
