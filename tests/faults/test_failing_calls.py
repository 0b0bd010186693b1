"""System calls whose failure once hung, lost or left something, or named no cause: the call, and what holds instead."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import fcntl
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import BackendName, run_all

from gwsandbox import Command, Outcome, ProcessManager, SandboxError, Task, TaskResult
from gwsandbox.backends.cgroup.leaf import Leaf
from gwsandbox.backends.rlimit import RlimitSandbox
from gwsandbox.guest import zygote
from gwsandbox.ipc import channel
from gwsandbox.linux import confine, landlock, procfs, syscalls
from gwsandbox.model import foreign
from gwsandbox.supervisor import launcher, reaper, supervisor

LARGE = 200_000  # bytes: more than a packet holds


class Refusals:
    """Lets a call fail a number of times, in whichever of the run's processes it is made."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._tokens, self._writer = os.pipe()
        os.set_blocking(self._tokens, False)

    def of(self, place: Any, name: str, number: int, *, times: int = 1) -> None:
        """``place.name`` fails with an errno the next ``times`` times."""
        real, take = getattr(place, name), os.read
        os.write(self._writer, b"x" * times)

        def refuse(*args: Any, **options: Any) -> Any:
            try:
                take(self._tokens, 1)
            except BlockingIOError:
                return real(*args, **options)
            raise OSError(number, os.strerror(number))

        self._patch.setattr(place, name, refuse)

    def close(self) -> None:
        os.close(self._tokens)
        os.close(self._writer)


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusals]:
    made = Refusals(monkeypatch)
    yield made
    made.close()


def fail_in(
    patch: pytest.MonkeyPatch, place: Any, name: str, is_to_fail: Callable[[int], bool], error: Exception
) -> None:
    """Let ``place.name`` fail in each process whose pid is one to fail."""
    real = getattr(place, name)

    def fail(*args: Any, **options: Any) -> Any:
        if is_to_fail(os.getpid()):
            raise error
        return real(*args, **options)

    patch.setattr(place, name, fail)


def causes(results: list[TaskResult]) -> list[tuple[str, int]]:
    """Step and errno of each result that is a failure of ours."""
    errors = [result.exception for result in results if result.outcome is Outcome.SANDBOX_ERROR]
    return [(error.step, error.errno) for error in errors if isinstance(error, SandboxError)]


def outcomes(results: list[TaskResult]) -> Counter[Outcome]:
    return Counter(result.outcome for result in results)


# --- packets ---------------------------------------------------------------------------------------------


def echoes(backend: BackendName) -> list[TaskResult]:
    """Of programs whose orders are too large for a packet, and that are ordered beside small tasks."""
    with ProcessManager(4, backend=backend) as manager:
        manager.queue_task(Task(abs, (-1,)))
        manager.queue_tasks([Task(abs, (-2,)), Command(["wc", "-c"], stdin=bytes(LARGE)), Task(abs, (-3,))])
    return manager.task_results


def test_an_order_that_cannot_be_read_yet_is_read_later(backend: BackendName, refusals: Refusals) -> None:
    refusals.of(channel, "read_stored", errno.ENOMEM, times=3)
    assert outcomes(echoes(backend)) == {Outcome.SUCCEEDED: 4}


def test_an_order_that_cannot_be_read_fails_and_names_why(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = os.getpid()
    fail_in(monkeypatch, channel, "read_stored", lambda pid: pid != caller, OSError(errno.EIO, "refused"))
    results = echoes(backend)
    assert causes(results) == [("receive task", errno.EIO)] * outcomes(results)[Outcome.SANDBOX_ERROR]
    assert outcomes(results)[Outcome.SANDBOX_ERROR] >= 1


def test_packets_of_another_version_end_the_run_with_an_error(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a caller that runs on while gwsandbox is replaced on the disk."""
    caller, real, packets = os.getpid(), channel.unpack, iter(range(2))

    def fail(*args: Any) -> Any:
        if os.getpid() == caller and next(packets, None) is not None:
            raise AttributeError("no such field")
        return real(*args)

    monkeypatch.setattr(channel, "unpack", fail)
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_tasks(Task(abs, (-1,)) for _ in range(3))
        if backend == "cgroup":  # it waits to hear of the backend
            with pytest.raises(SandboxError, match="receive results"):
                manager.start_tasks()
            return
    assert causes(manager.task_results) == [("receive results", 0)] * 3


# --- the result ------------------------------------------------------------------------------------------


def test_a_result_that_the_caller_cannot_read_is_a_failure(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = os.getpid()
    fail_in(monkeypatch, os, "pread", lambda pid: pid == caller, OSError(errno.EIO, os.strerror(errno.EIO)))
    lost, small = run_all(backend, [Task(bytes, (LARGE,)), Task(abs, (-1,))], workers=1)
    assert (lost.outcome, small.outcome) == (Outcome.FAILED, Outcome.SUCCEEDED)
    assert "result cannot be received: OSError: [Errno 5] Input/output error" in lost.detail


def test_a_guest_that_cannot_write_its_record_names_the_errno(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in(monkeypatch, os, "pwrite", lambda _: True, OSError(errno.ENOSPC, "refused"))
    (result,) = run_all(backend, [Task(abs, (-1,))])
    assert result.outcome is Outcome.FAILED
    assert result.detail.startswith("the function is done, and what it gave is lost: No space left on device")


def test_a_record_that_cannot_be_sealed_is_our_failure(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in(monkeypatch, fcntl, "fcntl", lambda _: True, OSError(errno.EBUSY, "refused"))
    (result,) = run_all(backend, [Task(bytes, (LARGE,))])
    assert causes([result]) == [("take over result", errno.EBUSY)]
    assert result.elapsed_time is not None


# --- how the processes begin -----------------------------------------------------------------------------


def test_a_zygote_whose_start_fails_for_now_is_tried_again(backend: BackendName, refusals: Refusals) -> None:
    refusals.of(zygote, "confine_zygote", errno.ENOMEM, times=3)
    assert outcomes(run_all(backend, [Task(abs, (-1,))] * 4)) == {Outcome.SUCCEEDED: 4}


def test_a_zygote_whose_start_fails_once_fails_one_task(backend: BackendName, refusals: Refusals) -> None:
    refusals.of(zygote, "confine_zygote", errno.EPERM)
    results = run_all(backend, [Task(abs, (-1,))] * 4)
    assert causes(results) == [("start zygote", errno.EPERM)]
    assert outcomes(results)[Outcome.SUCCEEDED] == 3


def test_a_supervisor_whose_first_step_fails_says_so(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = os.getpid()
    fail_in(
        monkeypatch,
        syscalls,
        "be_subreaper",
        lambda pid: caller not in {pid, os.getppid()},
        OSError(errno.ENOMEM, "refused"),
    )
    results = run_all(backend, [Task(abs, (-1,))] * 2)
    assert causes(results) == [("supervise: OSError", errno.ENOMEM)] * 2


def test_a_domain_that_cannot_be_entered_names_the_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = os.getpid()
    fail_in(monkeypatch, confine, "no_new_privs", lambda pid: pid != caller, OSError(errno.ENOMEM, "refused"))
    monkeypatch.setattr(confine, "prepare_landlock_restrict_self", lambda _: ())
    with pytest.raises(OSError, match="landlock_restrict_self: a ruleset cannot be obeyed") as raised:
        landlock.refused(0, [])
    assert raised.value.errno == errno.ENOMEM


# --- how they end ----------------------------------------------------------------------------------------


def test_a_guest_that_cannot_be_watched_any_more_keeps_no_other_from_its_slot(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = Leaf if backend == "cgroup" else RlimitSandbox
    fail_in(monkeypatch, sandbox, "remaining", lambda _: True, OSError(errno.ENOMEM, "refused"))
    monkeypatch.setattr(launcher, "_STUCK_SECONDS", 0.05)
    monkeypatch.setattr(supervisor, "_CLEAR_SECONDS", 0.1)
    results = run_all(backend, [Task(abs, (-1,))] * 8, workers=2)
    assert causes(results) == [("supervise guest", errno.ENOMEM)] * 8


def test_a_reaper_that_cannot_be_continued_is_still_waited_for(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = os.getpid()
    fail_in(monkeypatch, os, "kill", lambda pid: pid == caller, PermissionError(errno.EPERM, "refused"))
    assert outcomes(run_all(backend, [Task(abs, (-1,))])) == {Outcome.SUCCEEDED: 1}


# --- what the caller's own code does meanwhile -----------------------------------------------------------


class Ring(Exception):
    """What a signal handler raises."""


def test_a_handler_that_raises_while_handlers_are_replaced_is_not_the_codes_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ring(number: int, frame: object) -> None:
        raise Ring

    real, before = _signal.signal, signal.signal(signal.SIGALRM, ring)
    rings = iter([None])

    def replace(number: int, handler: Any) -> Any:
        for _ in rings:
            signal.raise_signal(signal.SIGALRM)
        return real(number, handler)

    monkeypatch.setattr(_signal, "signal", replace)
    try:
        with pytest.raises(Ring):
            foreign.call_foreign(lambda: None)
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGALRM, before)


class Unspeakable:
    """An argument that has no text."""

    def __str__(self) -> str:
        raise ValueError("no text")


def test_what_is_logged_of_an_argument_is_cut_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="gwsandbox")
    run_all("rlimit", [Task(len, (b"x" * 10**6,)), Task(isinstance, (Unspeakable(), int))], workers=1)
    long, unspeakable = [record.getMessage() for record in caplog.records]
    assert len(long) < 1000
    assert unspeakable.startswith("SUCCEEDED isinstance '(its text cannot be made)'")


# --- a block that is left by no __exit__ -----------------------------------------------------------------


def test_a_manager_that_is_forgotten_ends_its_run(backend: BackendName) -> None:
    """As after Ctrl-C at the first bytecode of __exit__, before any of its own comes to do something."""
    manager = ProcessManager(1, backend=backend)
    manager.__enter__()
    manager.queue_task(Task(signal.pause))
    manager._feed()
    assert procfs.children(os.getpid())
    del manager
    assert procfs.children(os.getpid()) == []


def test_a_reaper_that_is_killed_before_its_supervisor_has_said_that_it_is_there(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = reaper._say_started

    def kill_reaper_and_say(end: socket.socket, group: str) -> None:
        parent = os.getppid()
        os.kill(parent, signal.SIGKILL)
        while os.getppid() == parent:
            pass
        say(end, group)

    monkeypatch.setattr(reaper, "_say_started", kill_reaper_and_say)
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_tasks(Task(abs, (-number,)) for number in range(5))
    assert [result.outcome for result in manager.task_results] == [Outcome.SUCCEEDED] * 5
