"""What travels between the caller and its guests: arguments, values, exceptions, large and small, by both start methods."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
from support import MIB, SLOW, BackendName, run_all, run_one, run_task

from gwsandbox import Outcome, ProcessManager, Task, TransferError

MODULE_GLOBAL = ["as imported"]


def square(n: int) -> int:
    return n * n


def test_guests_see_the_callers_globals_closures_and_lambdas(backend: BackendName) -> None:
    secret = object()
    MODULE_GLOBAL[0] = "changed before processing began"
    tasks = [Task(lambda: id(secret)), Task(lambda: MODULE_GLOBAL[0]), Task(MODULE_GLOBAL.copy)]
    results = run_all(backend, tasks, workers=1)
    MODULE_GLOBAL[0] = "as imported"
    assert [result.result for result in results] == [
        id(secret),
        "changed before processing began",
        ["changed before processing began"],
    ]


def test_what_is_queued_before_is_not_pickled(backend: BackendName) -> None:
    lock = threading.Lock()  # cannot be pickled
    assert run_task(backend, Task(lambda held: held is lock, (lock,))).result is True


def test_arguments_that_cannot_be_pickled_fail_one_task_where_they_must_be(backend: BackendName) -> None:
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_tasks(iter([Task(square, (1,)), Task(id, (threading.Lock(),)), Task(square, (3,))]))
    by_outcome = {result.outcome: result for result in manager.task_results}
    failed = by_outcome[Outcome.FAILED]
    assert isinstance(failed.exception, TransferError)
    assert "_thread.lock" in str(failed.exception)
    assert "_thread.lock" in failed.detail
    assert sum(result.success for result in manager.task_results) == 2


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle 'Unpicklable' object")


class Stubborn(Exception):
    """Pickles, and does not unpickle by itself: its arguments are not what ``__init__`` asks for."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Locked(Exception):
    def __init__(self) -> None:
        super().__init__("it is locked")
        self.lock = threading.Lock()


def fail(error: BaseException) -> None:
    raise error


def test_a_result_that_cannot_be_pickled_is_a_failure_that_names_its_type(backend: BackendName) -> None:
    first, second = run_all(backend, [Task(Unpicklable), Task(square, (2,))], workers=1)
    assert (first.outcome, first.success, first.result) == (Outcome.FAILED, False, None)
    assert isinstance(first.exception, TransferError)
    assert "Unpicklable" in str(first.exception)
    assert second.result == 4


def test_an_exception_comes_with_the_guests_traceback_as_its_cause(backend: BackendName) -> None:
    result = run_task(backend, Task(fail, (ValueError("no", 5),)))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 1)
    assert isinstance(result.exception, ValueError)
    assert result.exception.args == ("no", 5)
    cause = str(result.exception.__cause__)
    assert "in fail\n    raise error" in cause
    assert "ValueError: ('no', 5)" in cause
    assert "gwsandbox/guest.py" not in cause
    assert "ValueError: ('no', 5)" in result.detail


def test_an_exception_whose_init_takes_other_arguments_arrives(backend: BackendName) -> None:
    result = run_task(backend, Task(fail, (Stubborn(404, "gone"),)))
    assert isinstance(result.exception, Stubborn)
    assert (str(result.exception), result.exception.code) == ("404: gone", 404)


def test_an_exception_that_cannot_be_pickled_arrives_as_type_and_text(backend: BackendName) -> None:
    result = run_task(backend, Task(fail, (Locked(),)))
    assert result.outcome is Outcome.FAILED
    assert isinstance(result.exception, TransferError)
    assert "Locked: it is locked" in str(result.exception)
    assert "Locked: it is locked" in str(result.exception.__cause__)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (SystemExit(), 0),
        (SystemExit(0), 0),
        (SystemExit(7), 7),
        (SystemExit(-1), 255),
        (SystemExit("words"), 1),
        (KeyboardInterrupt(), 1),
        (GeneratorExit(), 1),
        (TimeoutError("mine"), 1),
        (MemoryError("mine"), 1),
    ],
    ids=repr,
)
def test_whatever_a_task_raises_is_its_exception(backend: BackendName, error: BaseException, exit_code: int) -> None:
    result = run_task(backend, Task(fail, (error,)))
    assert (result.outcome, result.exit_code, result.success) == (Outcome.FAILED, exit_code, False)
    assert type(result.exception) is type(error)
    assert result.exception.args == error.args
    assert not result.timed_out
    assert not result.out_of_memory


@pytest.mark.parametrize("code", [0, 1, 125, 255])
def test_os_exit_is_a_failure_that_says_so(backend: BackendName, code: int) -> None:
    result = run_one(backend, os._exit, code)
    assert (result.outcome, result.exit_code, result.result) == (Outcome.FAILED, code, None)
    assert str(result.exception) == f"exited with code {code} before the function returned"


@pytest.mark.parametrize("value", [None, b"", b"x" * 65535, b"x" * 70000, "text", [1, {"a": (2.5, None)}], {1, 2}], ids=lambda v: f"{type(v).__name__}{len(v) if v else 0}")  # fmt: skip
def test_values_arrive_as_they_were(backend: BackendName, value: Any) -> None:
    result = run_task(backend, Task(lambda: value))
    assert (result.result, type(result.result)) == (value, type(value))


def test_200_mib_of_bytes_arrive_whole(backend: BackendName) -> None:
    size = 200 * MIB

    def make() -> bytes:
        return os.urandom(4096) + bytes(size - 4097) + b"!"

    result = run_task(backend, Task(make))
    assert result.success
    assert (len(result.result), result.result[-1:]) == (size, b"!")
    assert result.result.count(0, 4096) >= size - 4097


def test_2_gib_of_bytes_arrive_whole() -> None:
    size = 2 * 1024 * MIB + 1

    def make() -> bytearray:
        made = bytearray(size)
        made[:: 16 * MIB] = b"x" * 129
        return made

    result = run_task("rlimit", Task(make))
    assert result.success, result
    assert len(result.result) == size
    assert result.result[:: 16 * MIB] == b"x" * 129


def test_results_of_every_size_around_the_limit_of_inlining(backend: BackendName) -> None:
    sizes = [*range(65536 - 80, 65536 + 80, 7), 2**17, 2**20 + 1]
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_tasks(Task(bytes, (size,)) for size in sizes)
    assert sorted(len(result.result) for result in manager.task_results) == sorted(sizes)


def test_times_are_the_guests(backend: BackendName) -> None:
    began = time.time()
    with ProcessManager(1, backend=backend) as manager:
        for _ in range(4):
            manager.queue_task(Task(time.sleep, (0.05,)))
    ended = time.time()
    spans = [(result.start_time, result.end_time, result.elapsed_time) for result in manager.task_results]
    last = began
    for start, end, elapsed in spans:
        assert start is not None
        assert end is not None
        assert elapsed is not None
        assert last <= start < end <= ended  # one worker: none starts before the one before it has ended
        assert 0.05 <= elapsed <= end - start + 0.05 * SLOW
        last = end - 0.001
