"""The hook of ``threading`` for forks: no guest pays for it, and a guest's own forks have it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gwsandbox import ProcessManager, Task
from gwsandbox.guest import at_fork

_called_in: list[int] = []


@pytest.fixture
def _noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note where the hook runs: nothing else asks for the threads in this way."""
    threads = threading._enumerate  # type: ignore[attr-defined]

    def note() -> Any:
        _called_in.append(os.getpid())
        return threads()

    _called_in.clear()
    monkeypatch.setattr(threading, "_enumerate", note)


def _in_fork(look: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if look() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _look() -> tuple[bool, bool, bool]:
    """Whether the hook ran here, whether in a fork of this guest, and whether the fork has one thread."""
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        ran_in_fork = _in_fork(lambda: os.getpid() in _called_in)
        has_one = _in_fork(
            lambda: threading.active_count() == 1 and threading.main_thread() is threading.current_thread()
        )
    finally:
        release.set()
        thread.join()
    return os.getpid() in _called_in, ran_in_fork, has_one


@pytest.mark.usefixtures("_noted")
def test_it_runs_in_forks_of_a_guest_and_not_in_the_guest() -> None:
    with ProcessManager(2, backend="rlimit") as manager:
        manager.queue_tasks(Task(_look) for _ in range(3))
    assert [result.result for result in manager.task_results] == [(False, True, True)] * 3
    assert _called_in == []  # the caller forks nothing by itself, so all of it was below


@pytest.mark.usefixtures("_noted")
def test_a_hook_of_another_library_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs() -> None:
        """Nothing."""

    code = theirs.__code__
    monkeypatch.setattr(threading, "_after_fork", theirs)
    at_fork.spare_guests()
    assert theirs.__code__ is code
