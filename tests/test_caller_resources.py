"""A caller that is short of memory or descriptors, loses its supervisor again and again, or gets what is too large to send."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
from pathlib import Path

import pytest
from support import MIB, PACE, BackendName, Program, run_task

from gwsandbox import Command, Hardening, Limits, Outcome, ProcessManager, Task


@pytest.mark.parametrize(
    "work",
    [
        # Where User-mode Linux has no room for an address space, the process ends by SIGSEGV.
        pytest.param("Task(make, (300 << 20,))", marks=pytest.mark.stock_kernel),
        "Command(['head', '-c', str(300 << 20), '/dev/zero'])",
    ],
)
def test_a_result_that_the_caller_has_no_memory_for(backend: BackendName, work: str) -> None:
    source = f"""
import resource
from gwsandbox import Command, ProcessManager, Task
from gwsandbox.client import session
def make(size):
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    return bytes(size)
with ProcessManager(1, backend={backend!r}) as manager:
    manager.queue_task({work})
    manager.queue_task(Task(make, (3,)))
    completed = manager.as_completed()
    manager._feed()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        resource.setrlimit(resource.RLIMIT_AS, (int(file.read().split()[0]) * 4096 + (100 << 20), hard))
    for result in completed:
        print(result.outcome.name, type(result.exception).__name__, result.detail, flush=True)
"""
    with Program(source) as program:
        first = program.line()
        assert first.startswith("FAILED TransferError result cannot be received: MemoryError"), first
        assert program.line().startswith("SUCCEEDED NoneType")
        assert program.wait() == 0


@pytest.mark.parametrize(
    ("work", "outcome", "said"),
    [
        (Task(bytes, (MIB,)), Outcome.FAILED, ""),
        (Command(["head", "-c", str(MIB), "/dev/zero"]), Outcome.FAILED, ""),
        (
            Command(["sh", "-c", f"head -c {MIB} /dev/zero; exec sleep 1000"], limits=Limits(wall_seconds=0.4 * PACE)),
            Outcome.TIMED_OUT,
            "wall-clock limit of .* s reached; .*; ",
        ),
    ],
)
def test_a_result_that_the_caller_has_no_descriptor_for(
    backend: BackendName, work: Task | Command, outcome: Outcome, said: str
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_tasks([work, Task(bytes, (3,))])
        completed = manager.as_completed()
        manager._feed()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            first = next(completed)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert first.outcome is outcome
        lost = "result cannot be received: Too many open files [errno 24]; raise ulimit -n"
        assert re.fullmatch(said + re.escape(lost), first.detail), first.detail
        assert [result.result for result in completed] == [bytes(3)]


def test_a_task_too_large_to_be_sent_is_still_sent(backend: BackendName) -> None:
    data = os.urandom(1000) * 20_000
    with ProcessManager(2, backend=backend) as manager:
        manager.queue_tasks(Task(len, (data,)) for _ in range(4))
    assert [result.result for result in manager.task_results] == [len(data)] * 4


def test_sigkill_of_the_supervisor_by_every_second_task(backend: BackendName, tmp_path: Path) -> None:
    """Every task gets a result, and the manager can go on with a new supervisor."""
    manager = ProcessManager(2, backend=backend, hardening=Hardening.off())
    for _ in range(3):
        with manager:
            manager.queue_tasks(Task(os.kill, (os.getpid(), 0)) for _ in range(3))
            manager.queue_task(Task(lambda: os.kill(os.getppid(), signal.SIGKILL)))
            manager.queue_tasks(Task(abs, (-n,)) for n in range(5))
        assert len(manager.task_results) == 9
        assert Outcome.SANDBOX_ERROR in {result.outcome for result in manager.task_results}
    with manager:
        manager.queue_task(Task(abs, (-1,)))
    assert manager.task_results[0].success


def test_nothing_is_printed_when_all_goes_well(backend: BackendName) -> None:
    source = f"""
from gwsandbox import Limits, ProcessManager, Task
import os
with ProcessManager(2, backend={backend!r}, limits=Limits(memory="1GiB", wall_seconds=100)) as manager:
    manager.queue_tasks(Task(abs, (n,)) for n in range(10))
    manager.queue_task(Task(os._exit, (3,)))
    manager.queue_task(Task(int, ("x",)))
print(len(manager.task_results))
"""
    with Program(source, stderr=-2) as program:
        assert program.line() == "12"
        assert program.wait() == 0


assert sys.version_info >= (3, 11)
assert run_task is not None
