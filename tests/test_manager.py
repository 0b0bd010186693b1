"""``ProcessManager``: queueing, order of things, leaving early, raising, cancelling; on both backends."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator

import pytest
from support import MIB, PACE, BackendName, Watched, run_all, sleep_for_ever, times

import gwsandbox
from gwsandbox import GlasswallProcessManager, Limits, Outcome, ProcessManager, Task, TaskCancelled, run
from gwsandbox.linux import procfs


def square(n: int) -> int:
    return n * n


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
