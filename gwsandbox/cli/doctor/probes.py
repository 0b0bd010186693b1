"""A real task run into each limit: what ``gwsandbox doctor`` knows it knows from these."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from gwsandbox.manager import ProcessManager
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command, Task

Status = Literal["enforced", "degraded", "not held"]

_MIB = 1024**2
_GUARD_SECONDS = 10.0  # what no limit stops, this does


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one limit.

    Args:
        limit: Its field in ``Limits``.
        status: Whether it holds.
        by: What holds it; empty where nothing does.
        why: Why it is held less than fully, or not at all.
    """

    limit: str
    status: Status
    by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """A task that wants more than its limit, and how to see whether it got it."""

    limits: Limits
    task: Callable[[Limits], Task | Command]
    held: Callable[[TaskResult], bool]


def run_probes(backend: Literal["cgroup", "rlimit"]) -> list[Verdict]:
    """One verdict per limit, from real tasks.

    Raises:
        CgroupError: The backend cannot be had here.
    """
    with ProcessManager(len(PROBES), limits=Limits(wall_seconds=_GUARD_SECONDS), backend=backend) as manager:
        names = {}
        for name, probe in PROBES.items():
            task = probe.task(probe.limits)
            names[id(task)] = name
            manager.queue_task(task)
        results = {names[id(result.task)]: result for result in manager.as_completed()}
    return [judge(name, probe, results[name]) for name, probe in PROBES.items()]


def judge(name: str, probe: Probe, result: TaskResult) -> Verdict:
    """From what the task could do, not only from what the backend says."""
    by = result.enforcement.limits.get(name, "")
    why = result.enforcement.degraded.get(name, "")
    if result.outcome is Outcome.SANDBOX_ERROR:
        return Verdict(name, "not held", why=result.detail)
    if not by:
        return Verdict(name, "not held", why=why or "nothing holds it")
    if not probe.held(result):
        what = result.detail or f"it ended as {result.outcome.name}"
        return Verdict(name, "not held", why=f"{by} did not stop a task that went past it: {what}")
    return Verdict(name, "degraded" if why else "enforced", by, why)


# --- the tasks -------------------------------------------------------------------------------------------


def _eat_memory() -> None:
    _ = [b"x" * 4 * _MIB for _ in range(16)]  # filled, so that every page is touched


def _fork_many() -> int:
    """How many children could be had; what lives of them dies with the task."""
    for number in range(24):
        try:
            pid = os.fork()
        except BlockingIOError:
            return number
        if pid == 0:
            signal.pause()
    return 24


def _burn() -> None:
    while True:
        pass


def _share_of_cpu() -> float:
    """CPU time per wall-clock time, over half a second of trying to get all of it."""
    began, burnt = time.monotonic(), time.process_time()
    while (elapsed := time.monotonic() - began) < 0.5:
        pass
    return (time.process_time() - burnt) / elapsed


def _open_many() -> int:
    with contextlib.ExitStack() as opened:
        for number in range(256):
            try:
                fd = os.open(os.devnull, os.O_RDONLY)
            except OSError:
                return number
            opened.callback(os.close, fd)
    return 256


def _write_large_file() -> int:
    """How many bytes went in; a file in memory counts as any other."""
    fd = os.memfd_create("gwsandbox-probe")
    written = 0
    with contextlib.suppress(OSError):
        while written < _MIB:
            written += os.write(fd, bytes(65536))
    os.close(fd)
    return written


def _call(func: Callable[[], object]) -> Callable[[Limits], Task]:
    return lambda limits: Task(func, limits=limits)


def _ended_as(outcome: Outcome) -> Callable[[TaskResult], bool]:
    return lambda result: result.outcome is outcome


def _got_less_than(much: float) -> Callable[[TaskResult], bool]:
    return lambda result: result.success and result.result < much


PROBES: dict[str, Probe] = {
    "memory": Probe(Limits(memory=16 * _MIB), _call(_eat_memory), _ended_as(Outcome.OUT_OF_MEMORY)),
    "wall_seconds": Probe(Limits(wall_seconds=0.1), _call(signal.pause), _ended_as(Outcome.TIMED_OUT)),
    "cpu_seconds": Probe(Limits(cpu_seconds=0.1), _call(_burn), _ended_as(Outcome.CPU_TIME_EXCEEDED)),
    "cpus": Probe(Limits(cpus=0.2), _call(_share_of_cpu), _got_less_than(0.5)),
    "pids": Probe(Limits(pids=8), _call(_fork_many), _got_less_than(24)),
    "open_files": Probe(Limits(open_files=32), _call(_open_many), _got_less_than(33)),
    "file_size": Probe(Limits(file_size=65536), _call(_write_large_file), _got_less_than(65537)),
    "output": Probe(
        Limits(output=4096),
        lambda limits: Command(["/bin/sh", "-c", "while :; do echo doctor; done"], limits=limits),
        _ended_as(Outcome.OUTPUT_EXCEEDED),
    ),
}


def each_backend() -> Iterator[tuple[str, list[Verdict] | SandboxError]]:
    """For each backend the verdicts, or why it cannot be had."""
    backends: tuple[Literal["cgroup", "rlimit"], ...] = ("cgroup", "rlimit")
    for backend in backends:
        try:
            yield backend, run_probes(backend)
        except SandboxError as error:
            yield backend, error
