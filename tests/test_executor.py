"""``SandboxExecutor``: what a user of ``concurrent.futures`` expects, and what only a sandbox can do."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from typing import Any

import pytest
from support import PACE, BackendName, Program, Watched, sleep_for_ever

import gwsandbox
from gwsandbox import Command, GuestCrashed, GuestKilled, Limits, Outcome, RemoteTraceback, SandboxError, Task
from gwsandbox.executor import SandboxExecutor
from gwsandbox.linux import procfs

GLOBAL = ["as imported"]
EXECUTORS: list[SandboxExecutor] = []


def abort() -> None:
    os.abort()


def square(n: int) -> int:
    return n * n


def say_and_sleep(fd: int) -> None:
    os.write(fd, f"{os.getpid()} {os.getppid()}\n".encode())
    sleep_for_ever()


def say(fd: int, text: str) -> str:
    os.write(fd, text.encode())
    return text


def read_one(fd: int) -> bytes:
    return os.read(fd, 1)


@pytest.fixture
def executor(backend: BackendName) -> Iterator[SandboxExecutor]:
    with SandboxExecutor(2, backend=backend) as made:
        yield made


# --- tasks ---------------------------------------------------------------------------------------------------


def test_values_and_the_whole_result(executor: SandboxExecutor) -> None:
    futures = [executor.submit(square, n) for n in range(10)]
    assert [future.result() for future in futures] == [n * n for n in range(10)]
    result = futures[3].task_result
    assert result is not None
    assert (result.task, result.result, result.outcome) == (Task(square, (3,)), 9, Outcome.SUCCEEDED)
    assert {future.result() for future in as_completed(futures)} == {n * n for n in range(10)}


def test_what_the_function_raised_has_the_guests_traceback(executor: SandboxExecutor) -> None:
    error = executor.submit(divmod, 1, 0).exception()
    assert isinstance(error, ZeroDivisionError)
    assert isinstance(error.__cause__, RemoteTraceback)


def test_a_crash_fails_alone(executor: SandboxExecutor) -> None:
    crashed, killed = executor.submit(abort), executor.submit(os.kill, 0, signal.SIGKILL)
    fine = [executor.submit(square, n) for n in range(4)]
    assert isinstance(crashed.exception(), GuestCrashed)
    assert isinstance(crashed.exception(), BrokenExecutor)
    assert isinstance(killed.exception(), GuestKilled)
    assert isinstance(killed.exception(), BrokenExecutor)
    assert crashed.task_result is not None
    assert crashed.task_result.exception is crashed.exception()
    assert [future.result() for future in fine] == [0, 1, 4, 9]


def test_tasks_and_commands_have_their_own_limits(executor: SandboxExecutor) -> None:
    task = Task(sleep_for_ever, limits=Limits(wall_seconds=0.1 * PACE))
    first, second = executor.submit(task), executor.submit(task)
    command = executor.submit(Command(["sh", "-c", "echo out; exit 3"]))
    for future in (first, second):
        assert isinstance(future.exception(), TimeoutError)
    assert command.task_result is None or command.task_result.exit_code == 3
    with pytest.raises(gwsandbox.GuestFailed):
        command.result()
    assert command.task_result is not None
    assert command.task_result.result.stdout == b"out\n"
    with pytest.raises(TypeError, match="has its own"):
        executor.submit(task, 1)  # type: ignore[call-overload]


def test_views_share_the_slots_and_differ_in_limits(executor: SandboxExecutor) -> None:
    quick = executor.with_limits(wall_seconds=0.1 * PACE)
    assert isinstance(quick.submit(sleep_for_ever).exception(), TimeoutError)
    longer = quick.with_limits(Limits(wall_seconds=100, open_files=64))
    result = longer.submit(square, 2)
    assert result.result() == 4
    assert result.task_result is not None
    assert result.task_result.task.limits == Limits(wall_seconds=100, open_files=64)
    own = Task(sleep_for_ever, limits=Limits(wall_seconds=0.1 * PACE))
    assert isinstance(longer.submit(own).exception(), TimeoutError)
    with pytest.raises(ValueError, match="wall_seconds"):
        executor.with_limits(wall_seconds=-1)


def test_a_higher_priority_starts_first(backend: BackendName, pipe: tuple[int, int]) -> None:
    """The slot is taken, and two more tasks are with the supervisor: the rest waits by priority."""
    gate_reader, gate_writer = os.pipe()
    with SandboxExecutor(1, backend=backend) as executor:
        futures: list[Future[Any]] = [executor.submit(read_one, gate_reader)]
        futures += [executor.submit(square, n) for n in range(2)]
        while not futures[2].running():
            wait(futures[:1], timeout=0.01)
        futures += [executor.submit(say, pipe[1], "b"), executor.with_priority(-1).submit(say, pipe[1], "c")]
        futures += [executor.with_priority(5).submit(say, pipe[1], "a")]
        os.write(gate_writer, b"x")
        wait(futures)
    assert os.read(pipe[0], 10) == b"abc"
    os.close(gate_reader)
    os.close(gate_writer)


def test_from_many_threads(executor: SandboxExecutor) -> None:
    def submit_some(first: int) -> list[tuple[int, Any]]:
        return [(n, executor.submit(square, n)) for n in range(first, first + 25)]

    with ThreadPoolExecutor(8) as threads:
        for pairs in threads.map(submit_some, range(0, 200, 25)):
            assert [future.result() for _, future in pairs] == [n * n for n, _ in pairs]


def test_callbacks_may_submit_and_shut_down(backend: BackendName) -> None:
    executor = SandboxExecutor(1, backend=backend)
    second: list[Any] = []
    first = executor.submit(square, 2)

    def go_on(_: Future[int]) -> None:
        second.append(executor.submit(square, 3))
        executor.shutdown()

    first.add_done_callback(go_on)
    executor._thread._ended.wait()
    executor.shutdown()
    assert second[0].result() == 9


# --- cancelling ----------------------------------------------------------------------------------------------


def test_cancel_ends_a_running_task(executor: SandboxExecutor, pipe: tuple[int, int]) -> None:
    future = executor.submit(say_and_sleep, pipe[1])
    pid, _ = map(int, os.read(pipe[0], 100).split())
    with Watched(pid) as watched:
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result()
        assert not watched.living_after(0.01)
    assert future.cancelled()
    assert future.cancel()
    assert future.task_result is not None
    assert future.task_result.outcome is Outcome.CANCELLED
    done = executor.submit(square, 2)
    assert done.result() == 4
    assert not done.cancel()


def test_cancel_of_what_waits(backend: BackendName, pipe: tuple[int, int]) -> None:
    """With the caller, with the supervisor, and where its guest is born already: none of them does anything."""
    with SandboxExecutor(1, backend=backend) as executor:
        first = executor.submit(say_and_sleep, pipe[1])
        supervisor = int(os.read(pipe[0], 100).split()[1])
        waiting = [executor.submit(say, pipe[1], "never") for _ in range(20)]
        # The zygote, the guest that runs, and the one that waits; and an order beyond those.
        while len(procfs.children(supervisor)) < 3 or not waiting[1].running():
            wait(waiting, timeout=0.01)
        assert all(future.cancel() for future in waiting)
        assert wait(waiting).done == set(waiting)
        assert {future.task_result.outcome for future in waiting if future.task_result} == {Outcome.CANCELLED}
        assert first.running()
        assert first.cancel()
        assert executor.submit(os.getppid).result() == supervisor
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 10)


def test_shutdown_cancels_what_waits_if_asked(backend: BackendName, pipe: tuple[int, int]) -> None:
    executor = SandboxExecutor(1, backend=backend)
    futures = [executor.submit(read_one, pipe[0]) for _ in range(10)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert wait(futures[5:]).done
    os.write(pipe[1], bytes(10))
    executor.shutdown()
    assert [future.cancelled() for future in futures] == [False] * 3 + [True] * 7
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 2)


@pytest.mark.parametrize("how", ["kill_workers", "terminate_workers"])
def test_workers_are_ended(backend: BackendName, pipe: tuple[int, int], how: str) -> None:
    executor = SandboxExecutor(1, backend=backend)
    running, waiting = executor.submit(say_and_sleep, pipe[1]), executor.submit(abort)
    pid, _ = map(int, os.read(pipe[0], 100).split())
    with Watched(pid) as watched:
        getattr(executor, how)()
        wait((running, waiting))
        assert not watched.living_after(0.01)
    assert waiting.cancelled()
    assert running.task_result is not None
    if how == "kill_workers":
        assert running.cancelled()
    else:
        assert running.task_result.exit_code == -signal.SIGTERM
        assert isinstance(running.exception(), BrokenExecutor)
    executor.shutdown()


# --- map -----------------------------------------------------------------------------------------------------


def test_map(executor: SandboxExecutor) -> None:
    assert list(executor.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    assert list(executor.map(square, range(10), chunksize=4)) == [n * n for n in range(10)]
    for wrong in ({"chunksize": 0}, {"buffersize": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            executor.map(square, [1], **wrong)
    with pytest.raises(TypeError, match="buffersize"):
        executor.map(square, [1], buffersize=1.5)  # type: ignore[arg-type]


def test_map_draws_no_more_than_its_buffer_holds(executor: SandboxExecutor) -> None:
    drawn: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(100):
            drawn.append(n)
            yield n

    values = executor.map(square, numbers(), buffersize=3)
    assert drawn == [0, 1, 2]
    assert [next(values), next(values)] == [0, 1]
    assert drawn == [0, 1, 2, 3, 4]
    values.close()  # type: ignore[attr-defined]


def test_leaving_map_ends_what_runs(executor: SandboxExecutor, pipe: tuple[int, int]) -> None:
    values = executor.map(lambda n: say_and_sleep(pipe[1]) if n else n, range(2))
    assert next(values) == 0
    pid, _ = map(int, os.read(pipe[0], 100).split())
    with Watched(pid) as watched:
        values.close()  # type: ignore[attr-defined]
        assert not watched.living_after(30)


def test_map_gives_up_when_its_time_is_over(executor: SandboxExecutor) -> None:
    values = executor.map(time.sleep, [1000], timeout=0.01)
    with pytest.raises(TimeoutError):
        next(values)


# --- its life ------------------------------------------------------------------------------------------------


def test_guests_see_the_caller_as_it_is_at_refresh(executor: SandboxExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert executor.submit(get_global).result() == ["as imported"]
    monkeypatch.setitem(globals(), "GLOBAL", ["changed"])
    assert executor.submit(get_global).result() == ["as imported"]
    executor.refresh()
    assert executor.submit(get_global).result() == ["changed"]


def test_refresh_lets_go_on_what_runs(executor: SandboxExecutor, pipe: tuple[int, int]) -> None:
    running = executor.submit(read_one, pipe[0])
    first = executor.submit(os.getppid).result()
    executor.refresh()
    assert executor.submit(os.getppid).result() != first
    os.write(pipe[1], b"x")
    assert running.result() == b"x"


def test_another_supervisor_takes_the_place_of_one_that_is_killed(
    executor: SandboxExecutor, pipe: tuple[int, int]
) -> None:
    lost = executor.submit(say_and_sleep, pipe[1])
    _, supervisor = map(int, os.read(pipe[0], 100).split())
    os.kill(supervisor, signal.SIGKILL)
    assert isinstance(lost.exception(), SandboxError)
    assert executor.submit(square, 3).result() == 9


def use_the_callers() -> str:
    try:
        EXECUTORS[0].submit(square, 2)
    except RuntimeError as error:
        EXECUTORS[0].shutdown()
        return str(error)
    return "it could"


def test_a_fork_of_the_caller_cannot_use_it(executor: SandboxExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "EXECUTORS", [executor])
    assert f"belongs to process {os.getpid()}" in executor.submit(use_the_callers).result()
    assert executor.submit(square, 2).result() == 4


def what_wakes() -> list[str]:
    found = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{fd}")]
    return [what for what in found if "event" in what]


def test_no_guest_holds_what_wakes_the_executor(executor: SandboxExecutor) -> None:
    """Else it could keep the executor from waking up; after ``refresh`` too, when there is more of it."""
    assert executor.submit(what_wakes).result() == []
    executor.refresh()
    assert executor.submit(what_wakes).result() == []


def test_one_that_is_forgotten_ends(backend: BackendName) -> None:
    executor = SandboxExecutor(1, backend=backend)
    view = executor.with_priority(1)
    future = executor.submit(square, 2)
    ended = executor._thread._ended
    thread = weakref.ref(executor._thread)
    del executor
    assert future.result() == 4
    assert not ended.is_set()
    del view, future
    gc.collect()
    ended.wait()
    while thread() is not None:
        gc.collect()


EXIT = """
import os, sys, threading
from gwsandbox.executor import SandboxExecutor

def say(text):
    os.write(1, text.encode())

executor = SandboxExecutor(1, backend="rlimit")
futures = [executor.submit(say, f"{n}\\n") for n in range(3)]
if sys.argv[1] == "thread":
    threading.Thread(target=lambda: say(f"{futures[2].result()}\\n")).start()
elif sys.argv[1] == "raise":
    raise SystemExit("enough")
"""


@pytest.mark.parametrize("how", ["", "thread", "raise"])
def test_the_interpreter_ends_without_shutdown(how: str) -> None:
    """What was submitted is run, as by the standard executors; the fixture of all tests sees that nothing is left."""
    with Program(EXIT, how) as program:
        assert [program.line() for _ in range(3)] == ["0", "1", "2"]
        if how == "thread":
            assert program.line() == "None"
        assert program.process.wait() == (1 if how == "raise" else 0)


def test_no_session_no_task(monkeypatch: pytest.MonkeyPatch, backend: BackendName) -> None:
    def refuse(*_: object) -> None:
        raise SandboxError("start supervisor", errno=12)

    with SandboxExecutor(1, backend=backend) as executor:
        monkeypatch.setattr(gwsandbox.client.session.Session, "start", refuse)
        with pytest.raises(SandboxError, match="start supervisor"):
            executor.submit(square, 2)
        monkeypatch.undo()
        assert executor.submit(square, 2).result() == 4


@pytest.mark.parametrize("number", [0, -1])
def test_there_is_no_executor_without_workers(number: int) -> None:
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        SandboxExecutor(number)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'memory_limit'; there are worker_timeout_seconds"):
        SandboxExecutor(1, memory_limit=5)  # type: ignore[call-arg]


# --- the initializer -----------------------------------------------------------------------------------------


def set_global(value: str, lock: Any = None) -> None:
    GLOBAL[:] = [value]


def get_global() -> list[str]:
    return GLOBAL


def raise_in_some(reader: int) -> None:
    if os.read(reader, 1) == b"x":
        raise ValueError("no licence")


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_each_guest_is_initialized(backend: BackendName, start_method: Any) -> None:
    lock = threading.Lock() if start_method == "fork" else None  # which cannot be pickled
    with SandboxExecutor(
        1, backend=backend, start_method=start_method, initializer=set_global, initargs=("set", lock)
    ) as executor:
        first = executor.submit(get_global)
        assert first.result() == executor.submit(get_global).result() == ["set"]
        assert first.task_result is not None
        assert first.task_result.task == Task(get_global)
    assert GLOBAL == ["as imported"]


def test_an_initializer_that_never_works_breaks_the_executor(backend: BackendName, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"xxxxxx")
    with SandboxExecutor(1, backend=backend, initializer=raise_in_some, initargs=(pipe[0],)) as executor:
        futures = [executor.submit(square, n) for n in range(6)]
        for future in futures:
            with pytest.raises(BrokenExecutor, match="no licence"):
                future.result()
        with pytest.raises(BrokenExecutor, match="no licence"):
            executor.submit(square, 2)


def test_an_initializer_that_has_worked_fails_alone(backend: BackendName, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b".x.")
    with SandboxExecutor(1, backend=backend, initializer=raise_in_some, initargs=(pipe[0],)) as executor:
        futures = [executor.submit(square, n) for n in range(3)]
        assert futures[0].result() == 0
        with pytest.raises(BrokenExecutor, match="no licence"):
            futures[1].result()
        assert futures[2].result() == 4


# --- asyncio -------------------------------------------------------------------------------------------------


def test_it_is_an_executor_for_asyncio(executor: SandboxExecutor, pipe: tuple[int, int]) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        endless = loop.run_in_executor(executor, say_and_sleep, pipe[1])
        pid, _ = map(int, (await asyncio.to_thread(os.read, pipe[0], 100)).split())
        with Watched(pid) as watched:
            endless.cancel()
            assert not await asyncio.to_thread(watched.living_after, 30)
        return await loop.run_in_executor(executor, square, 4)

    assert asyncio.run(main()) == 16
