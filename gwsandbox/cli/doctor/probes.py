"""The probes of ``gwsandbox doctor``: a real task runs into each limit."""

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
from gwsandbox.model.hardening import ENFORCED, MECHANISMS, Hardening
from gwsandbox.model.limits import MIB, Limits
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command, Task
from gwsandbox.run import run

Status = Literal["enforced", "degraded", "not held"]

_GUARD_SECONDS = 10.0  # ends a probe that its limit does not stop


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one probe.

    Args:
        limit: Its field in ``Limits``.
        status: Whether it holds.
        by: The mechanism that holds it; empty where nothing does.
        why: The reason where it is held less than fully, or not at all.
    """

    limit: str
    status: Status
    by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """A task that tries to pass its limit.

    Args:
        limits: The limit.
        task: Makes the task.
        held: Whether the limit held, by the task's result.
    """

    limits: Limits
    task: Callable[[Limits], Task | Command]
    held: Callable[[TaskResult], bool]


def run_probes(backend: Literal["cgroup", "rlimit"]) -> list[Finding]:
    """Run all probes; one finding per limit.

    Raises:
        CgroupError: The backend is not available here.
    """
    with ProcessManager(len(PROBES), limits=Limits(wall_seconds=_GUARD_SECONDS), backend=backend) as manager:
        names = {}
        for name, probe in PROBES.items():
            task = probe.task(probe.limits)
            names[id(task)] = name
            manager.queue_task(task)
        results = {names[id(result.task)]: result for result in manager.as_completed()}
    return [assess(name, probe, results[name]) for name, probe in PROBES.items()]


def assess(name: str, probe: Probe, result: TaskResult) -> Finding:
    """The finding for one limit: by the effect on the task, not only by the word of the backend."""
    by = result.enforcement.limits.get(name, "")
    why = result.enforcement.degraded.get(name, "")
    if result.outcome is Outcome.SANDBOX_ERROR:
        return Finding(name, "not held", why=result.detail)
    if not by:
        return Finding(name, "not held", why=why or "nothing holds it")
    if not probe.held(result):
        what = result.detail or f"it ended as {result.outcome.name}"
        return Finding(name, "not held", why=f"{by} did not stop a task that went past it: {what}")
    return Finding(name, "degraded" if why else "enforced", by, why)


# --- the tasks -------------------------------------------------------------------------------------------


def _eat_memory() -> None:
    """Hold four times the limit until it is ended."""
    held = [b"x" * 4 * MIB for _ in range(16)]  # filled, so that every page is touched
    signal.pause()
    del held


def _fork_many() -> int:
    """How many children the kernel allowed; where it was three times the limit, wait to be ended with them."""
    for number in range(24):
        try:
            pid = os.fork()
        except BlockingIOError:
            return number
        if pid == 0:
            signal.pause()
    signal.pause()
    return 24


def _burn() -> None:
    while True:
        pass


def _share_of_cpu() -> float:
    """CPU time per wall-clock time of half a second of computing."""
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
    """Write up to 1 MiB into a file in memory, which counts as any other; the number of bytes written."""
    fd = os.memfd_create("gwsandbox-probe")
    written = 0
    with contextlib.suppress(OSError):
        while written < MIB:
            written += os.write(fd, bytes(65536))
    os.close(fd)
    return written


def _call(func: Callable[[], object]) -> Callable[[Limits], Task]:
    return lambda limits: Task(func, limits=limits)


def _ended_as(outcome: Outcome) -> Callable[[TaskResult], bool]:
    return lambda result: result.outcome is outcome


def _got_less_than(much: float) -> Callable[[TaskResult], bool]:
    return lambda result: result.success and result.result < much


def _refused_or_ended(result: TaskResult) -> bool:
    return _got_less_than(24)(result) or result.outcome is Outcome.KILLED


PROBES: dict[str, Probe] = {
    "memory": Probe(Limits(memory=16 * MIB), _call(_eat_memory), _ended_as(Outcome.OUT_OF_MEMORY)),
    "wall_seconds": Probe(Limits(wall_seconds=0.1), _call(signal.pause), _ended_as(Outcome.TIMED_OUT)),
    "cpu_seconds": Probe(Limits(cpu_seconds=0.1), _call(_burn), _ended_as(Outcome.CPU_TIME_EXCEEDED)),
    "cpus": Probe(Limits(cpus=0.2), _call(_share_of_cpu), _got_less_than(0.5)),
    "pids": Probe(Limits(pids=8), _call(_fork_many), _refused_or_ended),
    "open_files": Probe(Limits(open_files=32), _call(_open_many), _got_less_than(33)),
    "file_size": Probe(Limits(file_size=65536), _call(_write_large_file), _got_less_than(65537)),
    "output": Probe(
        Limits(output=4096),
        lambda limits: Command(["/bin/sh", "-c", "while :; do echo doctor; done"], limits=limits),
        _ended_as(Outcome.OUTPUT_EXCEEDED),
    ),
}


def probe_hardening() -> dict[str, str]:
    """For each mechanism of hardening whether it holds here: a child of the zygote tries what it is not to reach."""
    found: dict[str, str] = {}
    # By standard, and before that by strict for what standard does not ask for; users of their own change what others
    # say, and so come first.
    nothing: frozenset[str] = frozenset()
    users = Hardening.strict(user="slot", require=nothing)
    for hardening in (users, Hardening.strict(require=nothing), Hardening.standard()):
        try:
            result = run(Command(["/bin/true"]), hardening=hardening, backend="rlimit")
        except SandboxError as error:
            return dict.fromkeys(MECHANISMS, f"not: {error}")
        found.update(result.enforcement.hardening)
    return {**found, "results": ENFORCED}


def each_backend() -> Iterator[tuple[str, list[Finding] | SandboxError]]:
    """For each backend its findings, or the reason why it is not available."""
    backends: tuple[Literal["cgroup", "rlimit"], ...] = ("cgroup", "rlimit")
    for backend in backends:
        try:
            yield backend, run_probes(backend)
        except SandboxError as error:
            yield backend, error
