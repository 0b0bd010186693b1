"""After the return: what a task leaves is ended in the interpreter's own order, within a grace, and changes nothing."""

from __future__ import annotations

import atexit
import faulthandler
import glob
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any, Literal

import pytest
from support import EMULATED, PACE, BackendName, Program, sleep_for_ever

from gwsandbox import Limits, Outcome, ProcessManager, Task, TaskResult, run
from gwsandbox.model.verdict import GRACE_SECONDS

StartMethod = Literal["fork", "forkserver"]


@pytest.fixture(params=["fork", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> StartMethod:
    method: StartMethod = request.param
    return method


class Runs:
    """Runs one call by a backend and a start method."""

    def __init__(self, backend: BackendName, start_method: StartMethod) -> None:
        self.options: dict[str, Any] = {"backend": backend, "start_method": start_method}

    def __call__(self, func: Callable[..., Any], *args: Any, **limits: Any) -> TaskResult:
        return run(func, args, limits=Limits(**limits), **self.options)


@pytest.fixture
def runs(backend: BackendName, start_method: StartMethod) -> Runs:
    return Runs(backend, start_method)


KEPT: list[Any] = []  # what a task leaves open, as a module's globals do


# --- the interpreter's own order -------------------------------------------------------------------------


def leave_executors_open() -> tuple[list[int], int]:
    import asyncio

    KEPT.append(ThreadPoolExecutor(2))
    KEPT.append(asyncio.new_event_loop())
    return list(KEPT[0].map(abs, (-1, -2))), KEPT[1].run_until_complete(KEPT[1].run_in_executor(None, abs, -3))


def leave_a_process_pool_open() -> list[int]:
    KEPT.append(ProcessPoolExecutor(2, multiprocessing.get_context("fork")))
    return list(KEPT[0].map(abs, (-1, -2)))


@pytest.mark.parametrize(
    ("func", "expected"), [(leave_executors_open, ([1, 2], 3)), (leave_a_process_pool_open, [1, 2])]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_executor_that_is_left_open_ends(runs: Runs, func: Callable[[], object], expected: object) -> None:
    result = runs(func, wall_seconds=60)
    assert (result.outcome, result.result, result.exit_code, result.detail) == (Outcome.SUCCEEDED, expected, 0, "")


def register_everything(path: str) -> None:
    from multiprocessing import util

    def say(what: str) -> None:
        with open(path, "a", encoding="ascii") as file:
            file.write(f"{what}\n")

    go = threading.Event()
    threading.Thread(target=lambda: go.wait() and say("thread")).start()  # type: ignore[func-returns-value]
    util.Finalize(None, say, ("multiprocessing",), exitpriority=0)
    atexit.register(say, "first registered")
    atexit.register(say, "last registered")
    threading._register_atexit(go.set)  # type: ignore[attr-defined]
    threading._register_atexit(say, "threading's callback")  # type: ignore[attr-defined]


def test_the_order_is_the_interpreters(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "said"
    assert runs(register_everything, str(path)).success
    order = ["threading's callback", "thread", "last registered", "first registered", "multiprocessing"]
    assert path.read_text().split("\n") == [*order, ""]


def keep_a_folder(prefix: str) -> str:
    KEPT.append(tempfile.TemporaryDirectory(prefix=prefix))
    return str(KEPT[-1].name)


def test_a_temporary_folder_that_is_kept_goes_with_the_task(runs: Runs, tmp_path: Path) -> None:
    result = runs(keep_a_folder, str(tmp_path / "kept-"))
    assert result.success
    assert not os.path.exists(result.result)
    assert list(tmp_path.iterdir()) == []


def keep_a_folder_and_fail(prefix: str) -> None:
    keep_a_folder(prefix)
    raise ValueError("failed")


def test_it_goes_with_a_task_that_raised_too(runs: Runs, tmp_path: Path) -> None:
    assert isinstance(runs(keep_a_folder_and_fail, str(tmp_path / "kept-")).exception, ValueError)
    assert list(tmp_path.iterdir()) == []


def test_what_the_caller_registered_is_left_alone(backend: BackendName, tmp_path: Path) -> None:
    source = f"""
import atexit, concurrent.futures, sys, tempfile, threading, weakref
from gwsandbox import run
def say(what):
    print(what, flush=True)
class Thing: pass
thing = Thing()
weakref.finalize(thing, say, "finalizer")
atexit.register(say, "exit function")
atexit.register(lambda folder: say("folder's"), tempfile.TemporaryDirectory(dir={str(tmp_path)!r}))
pool = concurrent.futures.ThreadPoolExecutor(1)
pool.submit(abs, -1).result()
def task():
    atexit.register(say, "task's own")
    weakref.finalize(thing, say, "task's own finalizer")
assert run(task, backend={backend!r}).success
assert run(task, backend={backend!r}).success
import os
print(len(os.listdir({str(tmp_path)!r})), flush=True)
print(pool.submit(abs, -2).result(), flush=True)
"""
    with Program(source) as program:
        own = [program.line() for _ in range(4)]
        assert own == ["task's own finalizer", "task's own"] * 2
        assert [program.line() for _ in range(2)] == ["1", "2"]
        assert [program.line() for _ in range(3)] == ["folder's", "exit function", "finalizer"]
        assert program.wait() == 0


def test_an_exit_function_that_raises_is_printed_and_changes_nothing(backend: BackendName) -> None:
    source = f"""
import atexit
from gwsandbox import run
def task():
    atexit.register(print, "the other one")
    atexit.register(lambda: 1 / 0)
    atexit.register(exit, 3)
    return 5
result = run(task, backend={backend!r})
print(result.result, result.exit_code, repr(result.detail))
"""
    with Program(source, stderr=subprocess.STDOUT) as program:
        assert program.process.stdout is not None
        said = program.process.stdout.read().decode()
    assert "ZeroDivisionError" in said
    assert said.splitlines()[-2:] == ["the other one", "5 0 ''"]


# --- what will not end -----------------------------------------------------------------------------------


def leave_a_thread() -> str:
    threading.Thread(target=sleep_for_ever, name="the endless one").start()
    return "value"


def leave_a_busy_executor() -> str:
    KEPT.append(ThreadPoolExecutor(1, thread_name_prefix="busy"))
    KEPT[-1].submit(sleep_for_ever)
    return "value"


def leave_an_exit_function() -> str:
    atexit.register(sleep_for_ever)
    return "value"


def leave_a_process() -> str:
    multiprocessing.get_context("fork").Process(target=sleep_for_ever, name="the endless child").start()
    return "value"


def leave_output() -> str:
    _, writer = os.pipe()
    sys.stdout = open(writer, "w", buffering=1 << 20, encoding="ascii")  # noqa: SIM115 - it stays open
    sys.stdout.write("x" * (1 << 18))
    return "value"


def leave_a_thread_and_resist() -> str:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    return leave_a_thread()


@pytest.mark.parametrize(
    ("func", "what"),
    [
        (leave_a_thread, "thread 'the endless one'"),
        (leave_a_busy_executor, "thread 'busy_0'"),
        (leave_an_exit_function, "an exit function"),
        (leave_a_process, "process 'the endless child'"),
        (leave_output, "its last output"),
        (leave_a_thread_and_resist, "thread 'the endless one'"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_will_not_end_is_ended_after_a_grace_and_named(runs: Runs, func: Callable[[], str], what: str) -> None:
    result = runs(func)
    assert (result.outcome, result.result, result.exception) == (Outcome.SUCCEEDED, "value", None)
    assert result.exit_code == -signal.SIGALRM
    assert result.detail == f"the function returned, and what it left was ended after {GRACE_SECONDS} s: {what}"
    assert result.usage.wall_seconds is not None
    assert result.usage.wall_seconds > 0.9 * GRACE_SECONDS


def test_a_deadline_meanwhile_is_one_of_what_was_left(runs: Runs) -> None:
    wall = 0.7 * GRACE_SECONDS
    result = runs(leave_a_thread, wall_seconds=wall)
    if EMULATED and result.timed_out:
        return  # the guest of a clean interpreter imports its modules first, and there that takes longer than the limit
    assert (result.outcome, result.result) == (Outcome.SUCCEEDED, "value")
    assert not result.timed_out
    if result.exit_code == -signal.SIGKILL:  # the clean interpreter of a slow machine may be late
        assert f"the wall-clock limit of {wall:g} s ended what it left: thread 'the endless one'" in result.detail


def leave_a_kill(number: int) -> str:
    faulthandler.disable()  # of pytest, which would say a good deal
    atexit.register(os.kill, os.getpid(), number)
    return "value"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_after_the_return_changes_nothing(runs: Runs, number: signal.Signals) -> None:
    result = runs(leave_a_kill, int(number))
    assert (result.outcome, result.result, result.exit_code) == (Outcome.SUCCEEDED, "value", -number)
    assert result.detail == f"the function returned, and {number.name} ended what it left: an exit function"


def leave_an_exit_code() -> str:
    atexit.register(os._exit, 7)
    return "value"


def test_nor_does_an_exit_code(runs: Runs) -> None:
    result = runs(leave_an_exit_code)
    assert (result.outcome, result.result, result.exit_code) == (Outcome.SUCCEEDED, "value", 7)
    assert result.detail == "the function returned, and exited with code 7 later"


def raise_and_leave_a_thread() -> None:
    leave_a_thread()
    raise ValueError("failed")


def test_a_task_that_raised_has_failed_all_the_same(runs: Runs) -> None:
    result = runs(raise_and_leave_a_thread)
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, -signal.SIGALRM)
    assert isinstance(result.exception, ValueError)
    later = f"and what it left was ended after {GRACE_SECONDS} s: thread 'the endless one'"
    assert result.detail == f"the function raised ({later}): ValueError: failed"


def test_a_value_that_had_not_arrived_is_no_success(backend: BackendName) -> None:
    """The deadline comes while the value is being pickled."""
    result = run(lambda: Endless(), backend=backend, limits=Limits(wall_seconds=0.5 * PACE))
    assert result.outcome is Outcome.TIMED_OUT
    assert result.result is None


class Endless:
    def __reduce__(self) -> Any:
        sleep_for_ever()


# --- what a resource tracker removes ---------------------------------------------------------------------


def forget_shared_memory() -> str:
    from multiprocessing import shared_memory

    return shared_memory.SharedMemory(create=True, size=1 << 16).name


def forget_shared_memory_and_fail() -> None:
    raise ValueError(forget_shared_memory())


def shared(name: str) -> str:
    return f"/dev/shm/{name}"


@pytest.fixture
def callers_memory() -> Any:
    """Shared memory of the caller's, made in this very moment; its own tracker runs then."""
    memory = shared_memory.SharedMemory(create=True, size=1 << 12)
    memory.buf[:4] = b"data"  # type: ignore[index]
    yield memory
    memory.close()
    memory.unlink()
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def test_shared_memory_that_a_task_forgets_is_removed(runs: Runs, callers_memory: Any) -> None:
    result = runs(forget_shared_memory)
    assert result.success
    assert not os.path.exists(shared(result.result))
    failed = runs(forget_shared_memory_and_fail)
    assert not os.path.exists(shared(str(failed.exception)))
    assert os.path.exists(shared(callers_memory.name))


def attach(name: str) -> bytes:
    from multiprocessing import shared_memory

    memory = shared_memory.SharedMemory(name)
    found = bytes(memory.buf[:4])  # type: ignore[index]
    memory.close()
    return found


def test_shared_memory_of_others_that_a_task_attaches_to_stays(runs: Runs, callers_memory: Any) -> None:
    """Python's own tracker would remove it, as it takes for made what was only attached (bpo-38119)."""
    assert runs(attach, callers_memory.name).result == b"data"
    assert os.path.exists(shared(callers_memory.name))
    callers_memory.close()  # and so it is not mapped here any more
    assert runs(attach, callers_memory.name).result == b"data"
    assert os.path.exists(shared(callers_memory.name))


def attach_when_told(reader: int) -> bytes:
    return attach(os.read(reader, 100).decode())


def test_nor_is_what_the_caller_made_while_the_task_ran(backend: BackendName) -> None:
    reader, writer = os.pipe()
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_tasks([Task(abs, (-1,)), Task(attach_when_told, (reader,))])
        results = manager.as_completed()
        assert next(results).result == 1
        memory = shared_memory.SharedMemory(create=True, size=1 << 12)
        memory.buf[:4] = b"data"  # type: ignore[index]
        os.write(writer, memory.name.encode())
        assert next(results).result == b"data"
    assert os.path.exists(shared(memory.name))
    memory.close()
    memory.unlink()
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
    os.close(reader)
    os.close(writer)


def forget_a_semaphore() -> tuple[set[str], str]:
    before = set(glob.glob("/dev/shm/sem.*"))
    KEPT.append(multiprocessing.get_context("spawn").Semaphore())
    (name,) = set(glob.glob("/dev/shm/sem.*")) - before
    return before, name


def test_a_named_semaphore_that_a_task_forgets_is_removed(runs: Runs) -> None:
    result = runs(forget_a_semaphore)
    assert result.success, result
    assert not os.path.exists(result.result[1])


def pids_of_trackers() -> tuple[int | None, int | None]:
    tracker = resource_tracker._resource_tracker
    before = tracker._pid  # type: ignore[attr-defined]
    forget_shared_memory()
    return before, tracker._pid  # type: ignore[attr-defined]


def test_a_task_does_not_use_the_callers_tracker(backend: BackendName, callers_memory: Any) -> None:
    callers = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    assert callers is not None
    inherited, own = run(pids_of_trackers, backend=backend).result
    assert inherited is None
    assert own not in {None, callers}
    assert resource_tracker._resource_tracker._pid == callers  # type: ignore[attr-defined]
