"""``ProcessManager``: queueing, order of things, leaving early, raising, cancelling; on both backends."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
from support import MIB, PACE, SLOW, BackendName, Watched, parent, run_all, run_one, run_task, sleep_for_ever, times

import gwsandbox
from gwsandbox import (
    CgroupError,
    DegradedWarning,
    GlasswallProcessManager,
    Hardening,
    Limits,
    Outcome,
    ProcessManager,
    Task,
    TaskCancelled,
    TaskResult,
    TransferError,
    run,
)
from gwsandbox.linux import procfs

MODULE_GLOBAL = ["as imported"]


def square(n: int) -> int:
    return n * n


def wait_for(fd: int) -> str:
    """In a guest: until the test writes to a pipe that it inherited."""
    return os.read(fd, 100).decode()


def say_and_sleep(fd: int) -> None:
    os.write(fd, f"{os.getpid()} {os.getppid()}\n".encode())
    sleep_for_ever()


# --- the block -------------------------------------------------------------------------------------------


def test_leaving_the_block_runs_everything(backend: BackendName) -> None:
    with ProcessManager(max_workers=3, backend=backend) as manager:
        for n in range(10):
            manager.queue_task(Task(func=square, args=(n,)))
        assert manager.task_results == []
    assert sorted(result.result for result in manager.task_results) == [n * n for n in range(10)]
    assert all(result.success and result.outcome is Outcome.SUCCEEDED for result in manager.task_results)


def test_task_results_are_in_order_of_completion(backend: BackendName) -> None:
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_task(Task(time.sleep, (0.5 * PACE,)))
        manager.queue_task(Task(square, (1,)))
    assert [result.result for result in manager.task_results] == [1, None]


def test_an_empty_block_starts_nothing(backend: BackendName) -> None:
    with ProcessManager(backend=backend) as manager:
        pass
    assert manager.task_results == []
    with ProcessManager(backend=backend) as manager:
        assert list(manager.as_completed()) == []


def test_nothing_starts_before_the_block_is_left(backend: BackendName) -> None:
    before = procfs.children(os.getpid())
    with ProcessManager(backend=backend) as manager:
        manager.queue_task(Task(square, (2,)))
        assert procfs.children(os.getpid()) == before


def test_a_manager_can_be_used_again(backend: BackendName) -> None:
    manager = ProcessManager(1, backend=backend)
    for n in range(3):
        with manager:
            manager.queue_task(Task(square, (n,)))
        assert [result.result for result in manager.task_results] == [n * n]


def test_start_tasks_replaces_the_results(backend: BackendName) -> None:
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_task(Task(square, (2,)))
        manager.start_tasks()
        assert [result.result for result in manager.task_results] == [4]
        manager.queue_task(Task(square, (3,)))
        manager.start_tasks()
        assert [result.result for result in manager.task_results] == [9]
    assert [result.result for result in manager.task_results] == [9]


def test_a_body_that_raises_cancels_what_runs_and_what_waits(backend: BackendName) -> None:
    reader, writer = os.pipe()
    manager = ProcessManager(2, backend=backend)
    drawn = []

    def endless() -> Iterator[Task]:
        for n in itertools.count():
            drawn.append(n)
            yield Task(sleep_for_ever)

    with pytest.raises(ZeroDivisionError), manager:
        manager.queue_task(Task(say_and_sleep, (writer,)))
        manager.queue_task(Task(square, (3,)))
        manager.queue_tasks(endless())
        completed = manager.as_completed()
        assert next(completed).result == 9
        pid, supervisor = map(int, os.read(reader, 100).split())
        with Watched(pid, supervisor) as watched:
            try:
                raise ZeroDivisionError
            finally:
                manager.__exit__(*sys.exc_info())
            assert not watched.living_after(0)  # type: ignore[unreachable]
    os.close(reader)
    os.close(writer)
    assert {result.outcome for result in manager.task_results} == {Outcome.CANCELLED}
    assert len(manager.task_results) == 1 + len(drawn)


def test_queue_is_empty_where_the_body_raises_before_anything_started(backend: BackendName) -> None:
    manager = ProcessManager(2, backend=backend)
    with pytest.raises(ZeroDivisionError), manager:
        manager.queue_task(Task(square, (1,)))
        raise ZeroDivisionError
    assert [result.outcome for result in manager.task_results] == [Outcome.CANCELLED]
    assert isinstance(manager.task_results[0].exception, TaskCancelled)


# --- as_completed ----------------------------------------------------------------------------------------


def test_as_completed_yields_each_and_fills_nothing(backend: BackendName) -> None:
    with ProcessManager(2, backend=backend) as manager:
        for n in range(5):
            manager.queue_task(Task(square, (n,)))
        assert sorted(result.result for result in manager.as_completed()) == [0, 1, 4, 9, 16]
        assert manager.task_results == []
    assert manager.task_results == []


def test_tasks_may_be_queued_while_it_runs(backend: BackendName) -> None:
    got = []
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_task(Task(square, (2,)))
        for result in manager.as_completed():
            got.append(result.result)
            if result.result < 1000:
                manager.queue_task(Task(square, (result.result,)))
                manager.queue_task(Task(lambda n: n + 1000, (result.result,)))
    assert sorted(got) == [4, 16, 256, 1004, 1016, 1256, 65536]


def test_leaving_early_loses_nothing(backend: BackendName) -> None:
    with ProcessManager(2, backend=backend) as manager:
        for n in range(10):
            manager.queue_task(Task(square, (n,)))
        seen = [result.result for result in itertools.islice(manager.as_completed(), 3)]
    rest = [result.result for result in manager.task_results]
    assert sorted(seen + rest) == [n * n for n in range(10)]
    assert len(rest) == 7


def test_leaving_early_and_coming_back(backend: BackendName) -> None:
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_tasks(Task(square, (n,)) for n in range(10))
        first = [next(manager.as_completed()).result for _ in range(4)]
        rest = [result.result for result in manager.as_completed()]
    assert sorted(first + rest) == [n * n for n in range(10)]
    assert manager.task_results == []


def test_a_slow_consumer_gets_everything_and_holds_back_the_iterable(backend: BackendName) -> None:
    drawn = []

    def tasks() -> Iterator[Task]:
        for n in range(40):
            drawn.append(n)
            yield Task(square, (n,))

    got = []
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_tasks(tasks())
        assert drawn == []
        for result in manager.as_completed():
            got.append(result.result)
            assert len(drawn) <= len(got) + 2 * 3  # two that run, and two to come for each of them
    assert sorted(got) == [n * n for n in range(40)]


def test_a_consumer_that_raises(backend: BackendName) -> None:
    manager = ProcessManager(2, backend=backend)
    with pytest.raises(LookupError), manager:
        for n in range(4):
            manager.queue_task(Task(square, (n,)))
        manager.queue_task(Task(sleep_for_ever))
        for _ in manager.as_completed():
            raise LookupError
    assert Outcome.CANCELLED in {result.outcome for result in manager.task_results}
    assert len(manager.task_results) == 4


def test_a_dropped_result_is_freed(backend: BackendName) -> None:
    size = 40 * MIB
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_tasks(Task(bytes, (size,)) for _ in range(8))
        peaks = []
        for result in manager.as_completed():
            assert result.success, result
            assert len(result.result) == size
            del result
            peaks.append(procfs.resident(os.getpid()))
    assert max(peaks) - min(peaks) < 3 * size


# --- queue_tasks -----------------------------------------------------------------------------------------


def test_a_lazy_iterable_is_drawn_as_slots_come_free(backend: BackendName) -> None:
    drawn = []

    def tasks() -> Iterator[Task]:
        for n in itertools.count():
            drawn.append(n)
            yield Task(square, (n,))

    with ProcessManager(2, backend=backend) as manager:
        manager.queue_tasks(tasks())
        for result in manager.as_completed():
            if result.result == 25:
                break
        assert len(drawn) < 30
        manager.cancel()
    assert len(drawn) < 30


def test_an_iterable_that_raises_lets_its_error_through_and_cancels(backend: BackendName) -> None:
    def tasks() -> Iterator[Task]:
        yield Task(square, (2,))
        yield Task(sleep_for_ever)
        raise LookupError("no more")

    manager = ProcessManager(2, backend=backend)
    with pytest.raises(LookupError, match="no more"), manager:
        manager.queue_tasks(tasks())


def test_what_an_iterable_gave_before_it_raised_can_still_be_had(backend: BackendName) -> None:
    def tasks() -> Iterator[Task]:
        yield Task(square, (2,))
        raise LookupError("no more")

    with ProcessManager(2, backend=backend) as manager:
        manager.queue_tasks(tasks())
        with pytest.raises(LookupError, match="no more"):
            list(manager.as_completed())
        assert [result.result for result in manager.as_completed()] == [4]


def test_an_iterable_that_yields_something_else(backend: BackendName) -> None:
    manager = ProcessManager(2, backend=backend)
    with pytest.raises(TypeError, match="a task must be a Task or a Command, not int: 5"), manager:
        manager.queue_tasks([Task(square, (1,)), 5])  # type: ignore[list-item]


def test_several_iterables_and_single_tasks_keep_their_order(backend: BackendName) -> None:
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_task(Task(str, ("a",)))
        manager.queue_tasks(Task(str, (text,)) for text in "bc")
        manager.queue_task(Task(str, ("d",)))
        manager.queue_tasks(Task(str, (text,)) for text in "ef")
    assert "".join(result.result for result in manager.task_results) == "abcdef"


@pytest.mark.long
def test_many_tasks_cost_the_caller_no_memory(backend: BackendName) -> None:
    """10,000 no-ops; fewer under emulation."""
    count = times(10_000, at_least=500)
    sizes = []
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_tasks(Task(square, (n,)) for n in range(count))
        for number, result in enumerate(manager.as_completed()):
            assert result.success
            if number % (count // 10) == count // 20:
                sizes.append(procfs.resident(os.getpid()))
    assert len(sizes) == 10
    assert max(sizes[1:]) - sizes[1] < MIB


# --- cancel ----------------------------------------------------------------------------------------------


def test_cancel_ends_what_runs_and_what_waits(backend: BackendName) -> None:
    reader, writer = os.pipe()
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_task(Task(square, (2,)))
        for _ in range(5):
            manager.queue_task(Task(say_and_sleep, (writer,)))
        manager.queue_tasks(Task(square, (n,)) for n in itertools.count())
        completed = manager.as_completed()
        assert next(completed).result == 4
        assert os.read(reader, 1)
        manager.cancel()
        rest = list(completed)
    os.close(reader)
    os.close(writer)
    assert [result.outcome for result in rest] == [Outcome.CANCELLED] * 5
    assert {type(result.exception) for result in rest} == {TaskCancelled}
    assert {result.exit_code for result in rest} <= {-signal.SIGKILL, None}
    assert not any(result.timed_out or result.out_of_memory or result.success for result in rest)


def test_cancel_before_anything_started(backend: BackendName) -> None:
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_task(Task(square, (1,)))
        manager.queue_tasks(Task(square, (n,)) for n in itertools.count())
        manager.cancel()
    (result,) = manager.task_results
    assert (result.outcome, result.exit_code, result.start_time) == (Outcome.CANCELLED, None, None)


def test_a_cancelled_task_that_waited_has_done_nothing(backend: BackendName) -> None:
    reader, writer = os.pipe()
    for _ in range(times(20, at_least=3)):
        with ProcessManager(1, backend=backend) as manager:
            manager.queue_task(Task(say_and_sleep, (writer,)))
            manager.queue_task(Task(os.write, (writer, b"!")))
            completed = manager.as_completed()
            manager._feed()
            assert b"\n" in os.read(reader, 100)
            manager.cancel()
            outcomes = [result.outcome for result in completed]
        assert outcomes == [Outcome.CANCELLED] * 2
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 100)
    os.close(reader)
    os.close(writer)


def test_queueing_after_cancel_goes_on(backend: BackendName) -> None:
    outcomes = []
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_task(Task(square, (2,)))
        manager.queue_task(Task(sleep_for_ever))
        for result in manager.as_completed():
            outcomes.append(result.outcome)
            if result.result == 4:
                manager.cancel()
                manager.queue_task(Task(square, (3,)))
    assert sorted(outcome.name for outcome in outcomes) == ["CANCELLED", "SUCCEEDED", "SUCCEEDED"]


# --- limits ----------------------------------------------------------------------------------------------


def test_a_tasks_own_limits_override_the_managers_field_by_field(backend: BackendName) -> None:
    manager = ProcessManager(
        2, worker_timeout_seconds=3600, limits=Limits(open_files=64, file_size=1000), backend=backend
    )
    with manager:
        manager.queue_task(Task(sleep_for_ever, limits=Limits(wall_seconds=0.2)))
    (result,) = manager.task_results
    assert result.outcome is Outcome.TIMED_OUT
    assert result.timeout_seconds == 0.2
    assert result.enforcement.limits.keys() == {"wall_seconds", "open_files", "file_size"}
    assert result.enforcement.backend == backend


def test_limits_are_shown_as_they_were_given(backend: BackendName) -> None:
    manager = ProcessManager(1, 5, 4, backend=backend)
    with manager:
        manager.queue_task(Task(square, (1,)))
        manager.queue_task(Task(square, (2,), limits=Limits(memory="512MiB", wall_seconds="1m")))
        manager.queue_task(Task(square, (3,), limits=Limits(memory=0, wall_seconds=0)))
    shown = [(result.timeout_seconds, result.memory_limit_in_gib) for result in manager.task_results]
    assert repr(shown) == "[(5, 4), (60.0, 0.5), (0, 0)]"


def test_zero_and_none_are_no_limit(backend: BackendName) -> None:
    for none in (0, None):
        with ProcessManager(none, none, none, backend=backend) as manager:
            manager.queue_task(Task(square, (2,)))
        (result,) = manager.task_results
        assert (result.success, result.timeout_seconds, result.memory_limit_in_gib) == (True, none, none)
        assert manager.max_workers == len(os.sched_getaffinity(0))
        assert result.enforcement.limits == {}


@pytest.mark.parametrize("name", ["max_workers", "worker_timeout_seconds", "memory_limit_in_gib"])
@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, 1e300, pytest.param(10**400, id="huge")])
def test_bad_numbers_are_value_errors_that_name_the_parameter(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        ProcessManager(**{name: value}, backend="rlimit")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_workers", "worker_timeout_seconds", "memory_limit_in_gib"])
@pytest.mark.parametrize("value", ["5", True, [1], object()])
def test_what_is_no_number_is_a_type_error_that_names_the_parameter(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        ProcessManager(**{name: value}, backend="rlimit")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"backend": "docker"}, ValueError, "backend must be 'auto', 'cgroup' or 'rlimit', not 'docker'"),
        ({"start_method": "spawn"}, ValueError, "start_method must be 'fork' or 'forkserver', not 'spawn'"),
        ({"preload": "json"}, TypeError, "preload must be names of modules, as in preload=\\('json',\\), and not one"),
        ({"preload": [5]}, TypeError, "preload must be names of modules, not int: 5"),
        ({"preload": ["a-b"]}, ValueError, "preload has 'a-b', which is no name of a module"),
        ({"preload": ["json"]}, ValueError, "preload goes with start_method='forkserver'; with 'fork' guests have"),
        ({"limits": {"memory": 5}}, TypeError, "limits must be gwsandbox.Limits or None, not dict"),
        ({"hardening": 1}, TypeError, "hardening must be"),
        ({"max_workers": 1.5}, ValueError, "max_workers must be a whole number, not 1.5"),
        ({"memory_limit_in_gib": 1e-12}, ValueError, "memory_limit_in_gib of 1e-12"),
    ],
)
def test_bad_parameters(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ProcessManager(**{"backend": "rlimit", **options})


def test_bad_tasks() -> None:
    manager = ProcessManager(backend="rlimit")
    with pytest.raises(TypeError, match="a task must be a Task or a Command, not function"):
        manager.queue_task(square)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not iterable"):
        manager.queue_tasks(Task(square))  # type: ignore[arg-type]


def test_workers_may_be_a_whole_float_as_existing_scripts_compute_it() -> None:
    assert ProcessManager(13.02 // 4, backend="rlimit").max_workers == 3  # type: ignore[arg-type]


# --- what travels ----------------------------------------------------------------------------------------


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


def test_an_exception_that_cannot_be_pickled_is_told_by_type_and_text(backend: BackendName) -> None:
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


# --- where it is used ------------------------------------------------------------------------------------


def test_it_belongs_to_the_process_that_made_it(backend: BackendName) -> None:
    manager = ProcessManager(1, backend=backend)
    manager.queue_task(Task(square, (2,)))

    def use_it() -> None:
        list(manager.as_completed())

    result = run_task("rlimit", Task(use_it))
    assert isinstance(result.exception, RuntimeError)
    assert f"belongs to process {os.getpid()}" in str(result.exception)
    with manager:
        pass
    assert [result.result for result in manager.task_results] == [4]


def test_a_fork_of_the_callers_that_unwinds_ends_nothing(backend: BackendName) -> None:
    reader, writer = os.pipe()
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_task(Task(wait_for, (reader,)))
        completed = manager.as_completed()
        manager._feed()
        pid = os.fork()
        if pid == 0:
            manager.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(pid, 0)
        os.write(writer, b"still here")
        assert next(completed).result == "still here"
    os.close(reader)
    os.close(writer)


def nest(backend: BackendName, depth: int) -> list[int]:
    """In a guest: a manager of its own, and so on; their pids."""
    if depth == 0:
        return [os.getpid()]
    return [os.getpid(), *run(nest, (backend, depth - 1), backend=backend, hardening=Hardening.off()).result]


def test_managers_can_be_nested(backend: BackendName) -> None:
    """Without hardening, by which no guest can write cgroups, and so has none to give to guests of its own."""
    pids = run(nest, (backend, 2), backend=backend, hardening=Hardening.off()).result
    assert len(set(pids)) == 3


def test_two_managers_at_once(backend: BackendName) -> None:
    with ProcessManager(1, backend=backend) as one, ProcessManager(1, backend=backend) as other:
        for n in range(3):
            one.queue_task(Task(square, (n,)))
            other.queue_task(Task(square, (n + 10,)))
        first, second = one.as_completed(), other.as_completed()
        got = [next(generator).result for _ in range(3) for generator in (first, second)]
    assert sorted(got) == [0, 1, 4, 100, 121, 144]


def test_from_a_thread_that_is_not_the_main_one(backend: BackendName) -> None:
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, of fork beside threads
        thread = threading.Thread(target=lambda: results.append(run(square, (5,), backend=backend)))
        thread.start()
        thread.join()
    assert [result.result for result in results] == [25]


def test_signal_handling_of_the_caller_stays_as_it_was(backend: BackendName) -> None:
    def state() -> Any:
        return signal.pthread_sigmask(signal.SIG_BLOCK, ()), [signal.getsignal(n) for n in signal.valid_signals()]

    before = state()
    run(square, (1,), backend=backend)
    assert state() == before


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, lambda number, frame: None], ids=["ignored", "handled"])
def test_a_caller_that_ignores_or_handles_sigchld(backend: BackendName, disposition: Any) -> None:
    before = signal.signal(signal.SIGCHLD, disposition)
    try:
        results = run_all(backend, [Task(square, (n,)) for n in range(5)])
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert sorted(result.result for result in results) == [0, 1, 4, 9, 16]


def test_a_caller_whose_handler_reaps_everybody(backend: BackendName) -> None:
    def reap(number: int, frame: object) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    before = signal.signal(signal.SIGCHLD, reap)
    try:
        assert run(square, (3,), backend=backend).result == 9
    finally:
        signal.signal(signal.SIGCHLD, before)


# --- run() and names -------------------------------------------------------------------------------------


def test_run_takes_a_function_a_task_or_a_command(backend: BackendName) -> None:
    assert run(square, (3,), backend=backend).result == 9
    assert run(dict, kwargs={"a": 1}, backend=backend).result == {"a": 1}
    assert run(Task(square, (4,)), backend=backend).result == 16
    assert run(gwsandbox.Command(["true"]), backend=backend).exit_code == 0
    limited = run(sleep_for_ever, limits=Limits(wall_seconds=0.1), backend=backend)
    assert limited.timed_out
    stricter = Task(sleep_for_ever, limits=Limits(wall_seconds=0.1))
    assert run(stricter, limits=Limits(wall_seconds=3600), backend=backend).timed_out


def test_run_refuses_arguments_for_what_has_its_own() -> None:
    with pytest.raises(TypeError, match="args and kwargs go with a function"):
        run(Task(square, (1,)), (2,), backend="rlimit")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="func must be callable"):
        run(5, backend="rlimit")  # type: ignore[call-overload]


def test_the_name_that_existing_scripts_use() -> None:
    assert GlasswallProcessManager is ProcessManager


def test_results_are_usable_in_sets_and_pickle(backend: BackendName) -> None:
    results = run_all(backend, [Task(square, (n % 2,)) for n in range(4)])
    assert len(set(results)) == 2
    assert {result.task for result in results} == {Task(square, (0,)), Task(square, (1,))}
    assert pickle.loads(pickle.dumps(results)) == results


# --- which backend ---------------------------------------------------------------------------------------


def _has_no_cgroup() -> str:
    try:
        ProcessManager(backend="cgroup")
    except CgroupError as error:
        return str(error)
    return ""


@pytest.mark.skipif(not _has_no_cgroup(), reason="this host gives cgroup v2")
def test_auto_falls_back_with_one_warning_that_names_what_is_lost_and_what_mends_it() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ProcessManager(1) as manager:
            manager.queue_task(Task(square, (2,)))
            manager.queue_task(Task(square, (3,)))
    (warning,) = caught
    assert warning.category is DegradedWarning
    assert warning.filename == __file__
    text = str(warning.message)
    assert "held by rlimits and sampling" in text
    assert _has_no_cgroup() in text
    assert manager.task_results[0].enforcement.backend == "rlimit"


@pytest.mark.skipif(not _has_no_cgroup(), reason="this host gives cgroup v2")
def test_cgroup_where_it_cannot_be_had_is_an_error_that_says_why_and_what_mends_it() -> None:
    with pytest.raises(CgroupError) as caught:
        ProcessManager(backend="cgroup")
    assert caught.value.step.startswith("find delegated root: ")
    assert caught.value.remedy


@pytest.mark.cgroup2
def test_auto_takes_the_cgroup_where_it_can_be_had() -> None:
    assert run(square, (2,)).enforcement.backend == "cgroup"


def test_what_is_not_held_fully_is_named() -> None:
    limits = Limits(memory="1GiB", cpus=0.5, pids=10, wall_seconds=60, cpu_seconds=60, output=100, file_size=100)
    enforcement = run(square, (2,), limits=limits, backend="rlimit").enforcement
    assert enforcement.backend == "rlimit"
    assert enforcement["wall_seconds"] == "deadline + SIGKILL"
    assert "cpus" not in enforcement.limits
    assert {"memory", "cpus", "pids"} <= enforcement.degraded.keys()
    assert all(enforcement.degraded.values())
    assert {*enforcement.limits, *enforcement.degraded} >= limits.requested().keys()


@pytest.mark.cgroup2
def test_the_cgroup_holds_all_of_it() -> None:
    limits = Limits(memory="1GiB", cpus=0.5, pids=10, wall_seconds=60, cpu_seconds=60, output=100, file_size=100)
    enforcement = run(square, (2,), limits=limits, backend="cgroup").enforcement
    assert enforcement.degraded == {}
    assert enforcement.limits.keys() == {*limits.requested(), "swap"}
    assert enforcement["memory"] == "memory.max"


def test_the_supervisor_is_not_the_parent_of_the_callers_own_children(backend: BackendName) -> None:
    supervisor = run(os.getppid, backend=backend).result
    assert supervisor not in {os.getpid(), parent(os.getpid())}


def test_numbers_of_numpy_are_numbers() -> None:
    numbers: tuple[Any, ...] = np.int64(2), np.int32(60), np.float32(0.5)
    with ProcessManager(*numbers, backend="rlimit") as manager:
        manager.queue_task(Task(square, (2,)))
    (result,) = manager.task_results
    assert (manager.max_workers, result.timeout_seconds, result.memory_limit_in_gib) == (2, 60, 0.5)
    assert {type(result.timeout_seconds), type(result.memory_limit_in_gib)} <= {int, float}


async def add(one: int, two: int = 2) -> int:
    await asyncio.sleep(0)
    return one + two


class Adder:
    async def __call__(self, one: int) -> int:
        return await add(one)

    async def method(self, one: int) -> int:
        return await add(one, 3)


ASYNC: list[Any] = [add, functools.partial(add, two=5), Adder(), Adder().method, functools.partial(Adder())]


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_coroutine_functions_are_run(start_method: Literal["fork", "forkserver"]) -> None:
    async def in_a_loop() -> list[TaskResult]:
        """The caller's own loop is not the guest's."""
        return run_all("rlimit", [Task(func, (1,)) for func in ASYNC], workers=1, start_method=start_method)

    assert [result.result for result in asyncio.run(in_a_loop())] == [3, 6, 3, 4, 3]


def test_a_coroutine_function_that_raises(backend: BackendName) -> None:
    async def fail() -> None:
        raise ValueError("no document")

    result = run(fail, backend=backend)
    assert (result.outcome, repr(result.exception)) == (Outcome.FAILED, "ValueError('no document')")


def test_a_generator_function_has_no_value_that_could_be_sent(backend: BackendName) -> None:
    def generate() -> Iterator[int]:
        yield 1

    result = run(generate, backend=backend)
    assert result.outcome is Outcome.FAILED
    assert "generator" in result.detail


@pytest.mark.skipif(not _has_no_cgroup(), reason="this host gives cgroup v2")
def test_auto_warns_only_of_limits_that_are_held_less_than_fully() -> None:
    fully = Limits(wall_seconds=60, open_files=256)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ProcessManager(1, limits=fully) as manager:
            manager.queue_task(Task(square, (2,), limits=Limits(file_size="1GiB")))
        assert not caught
        with ProcessManager(1, limits=fully) as manager:
            manager.queue_task(Task(square, (2,)))
            manager.queue_task(Task(square, (2,), limits=Limits(cpus=0.5)))
            assert [warning.filename for warning in caught] == [__file__]
            manager.queue_tasks([Task(square, (2,), limits=Limits(memory="1GiB"))])
        ProcessManager(1, limits=Limits(memory="1GiB"))
    assert [warning.category for warning in caught] == [DegradedWarning, DegradedWarning]
