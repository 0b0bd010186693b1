"""A run whose scope systemd stops: it ends as cancelled. A signal stands for systemd's, which this host may not have."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gwsandbox import Outcome, ProcessManager, Task
from gwsandbox.backends.rlimit import RlimitBackend
from gwsandbox.linux import procfs, systemd_scope


def say_and_wait(path: str) -> None:
    """Say in a FIFO that this has begun, and go on for ever."""
    Path(path).write_text("x")
    signal.pause()


def end_supervisor() -> None:
    (reaper,) = procfs.children(os.getpid())
    while not (supervisors := procfs.children(reaper)):
        pass
    (supervisor,) = supervisors
    os.kill(supervisor, signal.SIGTERM)


def test_no_more_tasks_start_and_all_are_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RlimitBackend, "in_scope", True)
    sender = os.getpid()
    monkeypatch.setattr(systemd_scope, "is_manager", lambda pid: pid == sender)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ProcessManager(1, backend="rlimit") as manager:
        manager.queue_task(Task(say_and_wait, (str(fifo),)))
        completed = manager.as_completed()
        manager._feed()
        fifo.read_text()
        for number in range(8):  # more than the supervisor is given at a time
            manager.queue_task(Task(abs, (number,)))
        end_supervisor()
        outcomes = [result.outcome for result in completed]
    assert outcomes == [Outcome.CANCELLED] * 9
    assert manager.task_results == []


def test_a_signal_of_another_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RlimitBackend, "in_scope", True)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ProcessManager(1, backend="rlimit") as manager:
        manager.queue_task(Task(fifo.read_text))
        manager.queue_task(Task(abs, (-1,)))
        completed = manager.as_completed()
        manager._feed()
        end_supervisor()
        fifo.write_text("x")
        assert [result.outcome for result in completed] == [Outcome.SUCCEEDED] * 2
