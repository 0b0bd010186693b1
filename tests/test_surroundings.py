"""Managers in threads, event loops, forks and other managers, and callers of all sorts."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from typing import Any

import pytest
from support import BackendName, run_all, run_task

from gwsandbox import Hardening, ProcessManager, Task, run


def square(n: int) -> int:
    return n * n


def wait_for(fd: int) -> str:
    """In a guest: until the test writes to a pipe that it inherited."""
    return os.read(fd, 100).decode()


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
