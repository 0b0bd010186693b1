"""What several test modules share: how slow this machine is, programs in processes of their own, waiting."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

from gwsandbox import Hardening, Limits, ProcessManager, Task, TaskResult
from gwsandbox.linux import procfs

BackendName = Literal["cgroup", "rlimit"]

GIB = 1024**3
MIB = 1024**2
MARK = "GWSANDBOX_TEST_ID"  # in the environment of all that the tests start, and of nothing else


_QUIET_SECONDS = 0.0015  # what the work below takes on a machine of today that does nothing else


def _work_seconds() -> list[float]:
    """How long some work took, several times over, shortest first."""
    taken = []
    for _ in range(15):
        began = time.perf_counter()
        sum(number * number for number in range(30_000))
        taken.append(time.perf_counter() - began)
    return sorted(taken)


def _measure() -> tuple[float, float]:
    if said := os.environ.get("GWSANDBOX_TEST_SLOW"):
        return float(said), float(said)
    taken = _work_seconds()
    return taken[0] / _QUIET_SECONDS, taken[len(taken) // 2] / _QUIET_SECONDS


_machine, _moment = _measure()

EMULATED = _machine > 4
"""Whether this machine is one that software emulates, which is ten times slower and more."""

with open("/proc/cpuinfo", encoding="utf-8") as _file:
    USER_MODE = "User Mode Linux" in _file.read()
"""Whether this machine's kernel is a process: computing is as quick as anywhere, starting processes is not."""

SLOW = min(max(_moment, 3.0 if USER_MODE else 1.0), 40.0)
"""How many times slower than usual things go at this moment. What must not take longer is given so much more time."""

BEAT = min(SLOW, 10.0)
"""What stands for a second in the limits of a service that does several things in it."""

PACE = 4.0 if EMULATED else 2.0 if USER_MODE else 1.0
"""By how much to lengthen the limits of tasks that are to reach them, so that what comes before has room."""


def times(natively: int, *, at_least: int = 1) -> int:
    """How often to repeat something: as often as given, or fewer times where the machine is emulated or user mode."""
    fewer = _machine if EMULATED else 5.0 if USER_MODE else 1.0
    return max(int(natively / fewer), at_least)


def examples(natively: int) -> int:
    """How many examples Hypothesis is to try."""
    return times(natively, at_least=5)


# --- running tasks ---------------------------------------------------------------------------------------


def run_one(backend: BackendName, func: Callable[..., Any], *args: Any, **limits: Any) -> TaskResult:
    """One call under some limits."""
    return run_task(backend, Task(func, args, limits=Limits(**limits)))


def run_open(backend: BackendName, func: Callable[..., Any], *args: Any, **limits: Any) -> TaskResult:
    """One call under some limits and no hardening, which would refuse what the call tries before a limit has to hold."""
    return run_task(backend, Task(func, args, limits=Limits(**limits)), hardening=Hardening.off())


def run_task(backend: BackendName, task: Any, **options: Any) -> TaskResult:
    (result,) = run_all(backend, [task], **options)
    return result


def run_all(backend: BackendName, tasks: list[Any], workers: int = 2, **options: Any) -> list[TaskResult]:
    with ProcessManager(workers, backend=backend, **options) as manager:
        for task in tasks:
            manager.queue_task(task)
    assert len(manager.task_results) == len(tasks)
    return manager.task_results


def fork_until_refused(end: float = math.inf) -> str:
    """A task: every process of it forks until it may not, and stays; the first one says so.

    At ``end``, on the monotonic clock, all end by themselves.
    """
    first = os.getpid()
    while time.monotonic() < end:
        try:
            os.fork()
        except BlockingIOError:
            if os.getpid() == first:
                return "refused"
            sleep_for_ever()
    return "ended"


PROGRAM_BASE = 0x400000  # where ``write_program`` has a program loaded


def write_program(path: Path, code: bytes, memory: int) -> None:
    """A static program of x86_64 that is nothing but ``code``, and has ``memory`` bytes from ``PROGRAM_BASE`` on."""
    head, entry = 64 + 56, PROGRAM_BASE + 64 + 56
    elf = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, PROGRAM_BASE, PROGRAM_BASE, head + len(code), memory, 4096)
    path.write_bytes(elf + segment + code)
    path.chmod(0o755)


def sleep_for_ever() -> None:
    while True:
        signal.pause()


# --- processes -------------------------------------------------------------------------------------------


class Watched:
    """Processes, each by a pidfd, so that their end can be waited for and no other process be taken for them."""

    def __init__(self, *pids: int) -> None:
        self.pids = pids
        self._pidfds: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                self._pidfds[os.pidfd_open(pid)] = pid

    def living_after(self, seconds: float) -> set[int]:
        """Those that have not ended when so much time has passed; empty as soon as all have."""
        deadline = time.monotonic() + seconds
        alive = dict(self._pidfds)
        while alive and (left := deadline - time.monotonic()) > 0:
            poll = select.poll()
            for fd in alive:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(left * 1000):
                del alive[fd]
        return set(alive.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        self.living_after(10 * SLOW)
        for fd in self._pidfds:
            os.close(fd)


class Program:
    """A Python program in a process of its own, which says lines that the test waits for.

    ``hang_after`` is a guard only: no test waits for it to pass.
    """

    def __init__(self, source: str, *args: str, hang_after: float = 60, **options: Any) -> None:
        self._hang_after = hang_after * PACE
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            **options,
        )
        self._read = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next line that it says, without its end."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + self._hang_after
        while b"\n" not in self._read:
            ready, _, _ = select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"it said nothing more for {self._hang_after:.0f} s, after {self._read!r}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"it ended without a further line, after {self._read!r}"
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def numbers(self) -> list[int]:
        """The next line as numbers."""
        return [int(word) for word in self.line().split()]

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def wait(self) -> int:
        return self.process.wait(self._hang_after)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.process.wait()


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    return not procfs.is_zombie(pid)


def parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


class Hung(BaseException):
    """Not an Exception: who tries again what failed (Hypothesis) must not try this."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Fail a test that hangs. Not a limit on how long it may take."""

    def ring(number: int, frame: object) -> None:
        raise Hung(f"still running after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
