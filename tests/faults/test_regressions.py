"""Faults that once hung, lost or left something, each built small: a name for each, and what must hold instead."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support import PACE, BackendName, Program, run_all, times

from gwsandbox import Command, Limits, Outcome, ProcessManager, SandboxError, Task, TaskResult
from gwsandbox.guest import child, zygote
from gwsandbox.ipc import call
from gwsandbox.linux import procfs
from gwsandbox.supervisor import attempt, launcher, supervisor


class SourceBroke(Exception):
    """What an iterable of tasks raises in the middle."""


def outcomes(results: list[TaskResult]) -> list[Outcome]:
    return [result.outcome for result in results]


def helpers(caller: int) -> tuple[int, int, int]:
    """Reaper, supervisor and zygote of the one run of a process, once they are there."""
    reaper = first_child(caller)
    running = first_child(reaper)
    return reaper, running, first_child(running)


def first_child(pid: int) -> int:
    """The eldest child of a process, once it has one."""
    while not (found := procfs.children(pid)):
        pass
    return found[0]


# --- a death that no end-of-file tells -------------------------------------------------------------------


@pytest.mark.parametrize("is_command", [True, False])
def test_a_zygote_that_dies_between_the_fork_of_a_guest_and_its_answer(
    is_command: bool, backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest is born, waits for its time with the zygote's end of the socket open, and nobody knows its pid."""
    fork = zygote._fork
    once, writer = os.pipe()
    os.write(writer, b"x")
    os.set_blocking(once, False)

    def fork_and_die(setup: child.Setup) -> int:
        pid = fork(setup)
        if pid > 0:
            try:
                os.read(once, 1)
            except BlockingIOError:
                return pid
            os.kill(os.getpid(), signal.SIGKILL)
        return pid

    monkeypatch.setattr(zygote, "_fork", fork_and_die)
    work = [Command(["/bin/true"]) if is_command else Task(abs, (-1,)) for _ in range(4)]
    results = run_all(backend, work, limits=Limits(wall_seconds=60))
    os.close(once)
    os.close(writer)
    assert outcomes(results) == [Outcome.SUCCEEDED] * 4


def test_a_supervisor_that_dies_is_missed_though_others_hold_its_end(backend: BackendName) -> None:
    """As a process does that another thread of the caller forks at the wrong moment."""
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_task(Task(signal.pause))
        completed = manager.as_completed()
        session_end = held_end(manager)
        _, running, _ = helpers(os.getpid())
        stolen = steal_supervisors_end(running, session_end)
        os.kill(running, signal.SIGKILL)
        results = list(completed)
        os.close(stolen)
    assert outcomes(results) == [Outcome.SANDBOX_ERROR]


def held_end(manager: ProcessManager) -> int:
    """Start the run; the inode of the caller's end."""
    manager._feed()
    assert manager._session is not None
    return manager._session._processes.socket.fileno()


def steal_supervisors_end(pid: int, callers: int) -> int:
    """A duplicate of the supervisor's end of the socket, taken out of it by pidfd_getfd(2)."""
    import ctypes

    (inode,) = {os.fstat(callers).st_ino}
    pidfd = os.pidfd_open(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        for name in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
            if "socket:" in os.readlink(f"/proc/{pid}/fd/{name}"):
                fd = int(libc.syscall(438, pidfd, int(name), 0))
                if fd >= 0 and os.fstat(fd).st_ino != inode:
                    return fd
    finally:
        os.close(pidfd)
    raise AssertionError("the supervisor holds no socket")


def test_two_threads_that_start_at_once_do_not_hold_each_others_ends(backend: BackendName) -> None:
    """One supervisor is killed; its caller hears of it while the other run goes on."""
    together, heard, ended = threading.Barrier(2), threading.Event(), []

    def run(is_killed: bool) -> None:
        with ProcessManager(1, backend=backend) as manager:
            manager.queue_task(Task(signal.pause))
            together.wait()
            manager._feed()
            assert manager._session is not None
            if is_killed:
                os.kill(first_child(manager._session._processes._reapers[0]), signal.SIGKILL)
                ended.extend(outcomes(list(manager.as_completed())))
                heard.set()
            else:
                assert heard.wait(60)
                manager.cancel()

    for _ in range(times(5)):
        threads = [threading.Thread(target=run, args=(is_killed,)) for is_killed in (True, False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ended == [Outcome.SANDBOX_ERROR]
        ended.clear()
        heard.clear()


# --- a loop that never blocks ----------------------------------------------------------------------------


def test_a_stopped_zygote_holds_up_no_deadline(backend: BackendName) -> None:
    """More is asked of it than its socket holds."""
    with ProcessManager(16, backend=backend) as manager:
        manager.queue_task(Task(signal.pause, limits=Limits(wall_seconds=1.0 * PACE)))
        completed = manager.as_completed()
        manager._feed()
        _, _, forker = helpers(os.getpid())
        os.kill(forker, signal.SIGSTOP)
        manager.queue_tasks(Task(len, (b"x" * 60_000,)) for _ in range(40))
        results = list(completed)
    assert Counter(outcomes(results)) == {Outcome.TIMED_OUT: 1, Outcome.SUCCEEDED: 40}


def test_a_zygote_that_answers_nothing_is_replaced(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = zygote._fork
    once, writer = os.pipe()
    os.write(writer, b"x")
    os.set_blocking(once, False)

    def sleep_for_ever_once(setup: child.Setup) -> int:
        try:
            os.read(once, 1)
        except BlockingIOError:
            return fork(setup)
        while True:
            signal.pause()

    monkeypatch.setattr(zygote, "_fork", sleep_for_ever_once)
    monkeypatch.setattr(launcher, "_BIRTH_LIMIT", 0.2)
    results = run_all(backend, [Task(abs, (-1,)) for _ in range(3)])
    os.close(once)
    os.close(writer)
    assert outcomes(results) == [Outcome.SUCCEEDED] * 3


# --- "not now" -------------------------------------------------------------------------------------------


FEW_DESCRIPTORS = """
import collections, resource, sys
from gwsandbox import Command, ProcessManager, Task
backend, few, tasks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
with ProcessManager(100, backend=backend) as manager:
    manager.queue_task(Task(abs, (-1,)))
    manager.queue_tasks(Task(len, (b"x" * 100_000,)) for _ in range(tasks))
    manager.queue_tasks(Command(["head", "-c", "1000000", "/dev/zero"]) for _ in range(10))
print(dict(collections.Counter(f"{result.outcome.name} {result.detail}" for result in manager.task_results)))
"""


@pytest.mark.parametrize("few", [40, 64, 256])
def test_few_descriptors_are_fewer_guests_at_a_time_and_no_failure(few: int, backend: BackendName) -> None:
    tasks = times(100, at_least=20)
    with Program(FEW_DESCRIPTORS, backend, str(few), str(tasks)) as program:
        assert program.line() == str({"SUCCEEDED ": tasks + 11})
        assert program.wait() == 0


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_a_fork_that_the_kernel_refuses_for_now_is_tried_again(
    number: int, backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = zygote._fork
    tokens, writer = os.pipe()
    os.write(writer, b"12345")
    os.set_blocking(tokens, False)

    def refuse(setup: child.Setup) -> int:
        try:
            os.read(tokens, 1)
        except BlockingIOError:
            return fork(setup)
        return -number

    monkeypatch.setattr(zygote, "_fork", refuse)
    results = run_all(backend, [Task(abs, (-1,)) for _ in range(6)])
    os.close(tokens)
    os.close(writer)
    assert outcomes(results) == [Outcome.SUCCEEDED] * 6


def test_a_fork_that_is_always_refused_says_why(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "_fork", lambda _: -errno.EAGAIN)
    results = run_all(backend, [Task(abs, (-1,)) for _ in range(3)])
    assert outcomes(results) == [Outcome.SANDBOX_ERROR] * 3
    for result in results:
        assert isinstance(result.exception, SandboxError)
        assert (result.exception.step, result.exception.errno) == ("fork guest", errno.EAGAIN)


def test_a_large_task_that_finds_no_descriptor_in_the_caller(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EMFILE, "refused")

    with ProcessManager(1, backend=backend) as manager:
        manager.queue_task(Task(abs, (-1,)))
        completed = manager.as_completed()
        assert next(completed).result == 1
        monkeypatch.setattr(call, "store", refuse)
        manager.queue_task(Task(len, (b"x" * 200_000,)))
        failed = next(completed)
        monkeypatch.undo()
        manager.queue_task(Task(len, (b"x" * 200_000,)))
        assert next(completed).result == 200_000
    assert failed.outcome is Outcome.SANDBOX_ERROR
    assert "send task to its supervisor" in failed.detail
    assert "[errno 24]" in failed.detail


def test_a_limit_on_the_callers_files_is_none_on_what_it_sends(backend: BackendName) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with ProcessManager(1, backend=backend) as manager:
            manager.queue_task(Task(abs, (-1,)))
            manager._feed()
            manager.queue_task(Task(len, (b"x" * 300_000,)))
            manager.queue_task(Command(["wc", "-c"], stdin=b"x" * 300_000))
            manager.queue_task(Task(bytes, (300_000,)))
            manager.queue_task(Task(resource.getrlimit, (resource.RLIMIT_FSIZE,)))
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == 100_000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    _, length, output, large, seen = manager.task_results
    assert (length.result, output.result.stdout.strip(), len(large.result)) == (300_000, b"300000", 300_000)
    assert seen.result == (100_000, limits[1])  # guests get the caller's limit back


# --- one attempt's failure is one attempt's --------------------------------------------------------------


@pytest.mark.parametrize("step", ["_attempt", "_begin", "_look_at", "_read_output"])
def test_whatever_fails_for_one_attempt_ends_no_other(
    step: str, backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(supervisor.Supervisor, step)

    def fail(self: Any, running: attempt.Attempt, *rest: Any) -> Any:
        if running.order.limits.wall_seconds == 77:
            raise RuntimeError("one of them")
        return real(self, running, *rest)

    monkeypatch.setattr(supervisor.Supervisor, step, fail)

    def of(seconds: int) -> Task:
        limits = Limits(memory="2GiB", cpu_seconds=50, output=1000, wall_seconds=seconds)
        return Task(signal.sigtimedwait, ((), 0.2), limits=limits)

    work = {id(task): task for task in map(of, (60, 77, 60, 77, 60))}
    marked = {number for number, task in work.items() if task.limits == of(77).limits}
    results = run_all(backend, list(work.values()), workers=3)
    failed = {id(result.task) for result in results if result.outcome is Outcome.SANDBOX_ERROR}
    succeeded = [result for result in results if result.outcome is Outcome.SUCCEEDED]
    if step != "_look_at" or backend == "rlimit":  # by cgroups nothing is looked at so soon
        assert (failed, len(succeeded)) == (marked, 3), results
        assert {result.detail for result in results} - {""} == {"supervise guest ('RuntimeError: one of them')"}


def test_what_is_given_up_leaves_no_zombie(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Any, running: attempt.Attempt) -> Any:
        yield running.pidfd, 0
        raise AssertionError

    real = supervisor.Supervisor._attempt
    monkeypatch.setattr(
        supervisor.Supervisor,
        "_attempt",
        lambda self, running: fail(self, running) if running.is_command else real(self, running),
    )
    monkeypatch.setattr(
        supervisor.Supervisor,
        "_begin",
        give_up_programs(supervisor.Supervisor._begin),
    )
    with ProcessManager(1, backend=backend) as manager:
        for _ in range(5):
            manager.queue_task(Command(["sleep", "1000"]))
        manager.queue_task(Task(zombies_of_supervisor))
    *given_up, last = manager.task_results
    assert outcomes(given_up) == [Outcome.SANDBOX_ERROR] * 5
    assert len(last.result) <= 1  # of the last one, which may just be dying


def give_up_programs(real: Any) -> Any:
    def begin(self: Any, running: attempt.Attempt) -> None:
        real(self, running)
        if running.is_command:
            raise RuntimeError("given up")

    return begin


def zombies_of_supervisor() -> list[int]:
    return [pid for pid in procfs.children(os.getppid()) if pid != os.getpid() and procfs.is_zombie(pid)]


def test_a_supervisor_that_cannot_go_on_says_why(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Any) -> None:
        raise OSError(errno.ENOSPC, "no watches left")

    monkeypatch.setattr(supervisor.Supervisor, "_begin_ready", fail)
    results = run_all(backend, [Task(abs, (-1,))] * 3)
    assert outcomes(results) == [Outcome.SANDBOX_ERROR] * 3
    assert {result.detail for result in results} == {
        "supervise: OSError ('[Errno 28] no watches left'): No space left on device [errno 28]"
    }


# --- iterables, and what the caller has open ---------------------------------------------------------------


@pytest.mark.parametrize("in_loop", [True, False])
def test_an_iterable_that_raises_cancels_what_it_gave_before(in_loop: bool, backend: BackendName) -> None:
    def broken() -> Iterator[Task]:
        yield Task(abs, (-1,))
        yield Task(abs, (-2,))
        raise SourceBroke

    manager = ProcessManager(4, backend=backend)
    seen = []
    with pytest.raises(SourceBroke), manager:
        manager.queue_tasks(broken())
        if in_loop:
            seen += list(manager.as_completed())
    results = [*seen, *manager.task_results]
    assert len(results) == 2
    assert set(outcomes(results)) <= {Outcome.CANCELLED, Outcome.SUCCEEDED}


def test_an_iterable_that_raises_and_is_caught_loses_nothing(backend: BackendName) -> None:
    def broken() -> Iterator[Task]:
        yield Task(abs, (-1,))
        raise SourceBroke

    with ProcessManager(1, backend=backend) as manager:
        manager.queue_tasks(broken())
        manager.queue_task(Task(abs, (-2,)))
        with pytest.raises(SourceBroke):
            list(manager.as_completed())
        results = list(manager.as_completed())
    assert sorted(result.result for result in results) == [1, 2]


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_a_pipe_that_the_caller_closes_ends_for_its_reader(start_method: Any, backend: BackendName) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        assert reader.stdin is not None
        with ProcessManager(1, backend=backend, start_method=start_method) as manager:
            manager.queue_task(Task(signal.pause))
            manager._feed()
            reader.stdin.close()
            assert reader.wait(60) == 0
            manager.cancel()
    assert outcomes(manager.task_results) == [Outcome.CANCELLED]


def test_a_connection_that_the_caller_closes_ends_for_its_peer(backend: BackendName) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
        with there, ProcessManager(1, backend=backend) as manager:
            manager.queue_task(Task(signal.pause))
            manager._feed()
            here.close()
            there.settimeout(60)
            assert there.recv(1) == b""
            manager.cancel()


def test_both_ends_of_a_pipe_are_the_guests_too(backend: BackendName) -> None:
    reader, writer = os.pipe()
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_task(Task(os.write, (writer, b"x")))
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(writer)


def test_a_forged_failure_of_a_step_is_the_tasks_own(backend: BackendName) -> None:
    """Only before the start event can one be true: what comes later, the task has written."""
    (result,) = run_all(backend, [Task(forge_failure)])
    assert result.outcome is Outcome.FAILED
    assert result.detail == "exited with code 125 before the function returned"


def forge_failure() -> None:
    from gwsandbox.ipc import record
    from gwsandbox.model.errors import GuestSetupError
    from gwsandbox.model.verdict import Delivery

    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            if "gwsandbox-result" in os.readlink(f"/proc/self/fd/{name}"):
                record.write_exception(int(name), GuestSetupError("guest step 'forged' failed"), Delivery.STEP_FAILED)
                os._exit(125)
