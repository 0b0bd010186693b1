"""The kernel's own calls fail, by strace: a check that they do what the patched functions of ``hook`` do.

The tracer is attached to the process of one role once the run has begun. It stops what it traces for each call, so this
is for few points.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

from faultlab import driver, process_tree
from faultlab.driver import Action, Report
from faultlab.options import Options
from faultlab.process_tree import Role
from faultlab.workload import Plan, StartMethod, drive

_SORTS = ("square", "large", "failing", "echo", "limited", "printing", "argument", "nap")
_LATE = len(_SORTS) - 1
_ATTACHED_AFTER = 20.0  # seconds
_LONGEST, _STALLED = 60.0, 15.0  # seconds
_NUMBERS = (1, 2, 5)

# What each role calls, by the kernel's names, and with what it is to fail.
_CALLS: dict[Role, dict[str, tuple[str, ...]]] = {
    Role.CALLER: {"recvmsg": ("ENOMEM",), "sendmsg": ("ENOBUFS", "ETOOMANYREFS"), "memfd_create": ("EMFILE",)},
    Role.SUPERVISOR: {
        "memfd_create": ("EMFILE", "ENOMEM"),
        "eventfd2": ("ENFILE",),
        "pidfd_open": ("EMFILE",),
        "pipe2": ("EMFILE",),
        "epoll_ctl": ("ENOMEM", "ENOSPC"),
        "sendmsg": ("ENOBUFS", "ETOOMANYREFS"),
        "recvmsg": ("ENOMEM",),
        "openat": ("EMFILE", "ENOMEM"),
        "prlimit64": ("EPERM",),
    },
    Role.ZYGOTE: {"clone,clone3": ("EAGAIN", "ENOMEM"), "recvmsg": ("ENOMEM",), "sendto": ("ENOBUFS",)},
    Role.GUEST: {"setsid": ("EPERM",), "pwrite64": ("ENOSPC",), "execve": ("ENOMEM",)},
}


@dataclass(frozen=True, slots=True)
class TracedPoint:
    """One fault.

    Args:
        role: Whose call fails; for a guest, in each one that the zygote forks.
        calls: Which, separated by commas, by the kernel's names.
        errno: How.
        number: The how many-th of each process.
    """

    role: Role
    calls: str
    errno: str
    number: int

    def __str__(self) -> str:
        return f"{self.role}:{self.calls}:{self.number}:{self.errno}:traced"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what ``str`` gives."""
        role, calls, number, name, _ = text.split(":")
        return cls(Role(role), calls, name, int(number))


def points() -> Iterator[TracedPoint]:
    """All of them."""
    for role, calls in _CALLS.items():
        for name, errnos in calls.items():
            numbers = (1,) if role is Role.GUEST else _NUMBERS
            for number, errno in itertools.product(numbers, errnos):
                yield TracedPoint(role, name, errno, number)


def chosen(options: Options) -> Iterator[tuple[StartMethod, TracedPoint]]:
    """As many as were asked for, in an order that comes from the seed."""
    if options.point:
        yield options.methods()[0], TracedPoint.parse(options.point)
        return
    found = list(itertools.product(options.methods(), points()))
    random.Random(options.seed).shuffle(found)
    yield from found[: options.rounds]


def injected(options: Options, method: StartMethod, point: TracedPoint) -> tuple[int, driver.Ended]:
    """Run a workload under a tracer; how many calls failed, and how it ended."""
    _install()
    plan = Plan(_SORTS, workers=2, backend=options.backend, start_method=method, late=_LATE)
    folder = tempfile.mkdtemp(prefix="faultlab-")
    reader, writer = os.pipe()
    tracer = _Tracer(point, f"{folder}/trace", writer)
    try:
        actions = [Action(1, 0, tracer.attach), Action(len(_SORTS) * 9, 0, tracer.end, undoes=True)]
        ended = driver.run(functools.partial(_drive, plan, reader), actions, longest=_LONGEST, stalled=_STALLED)
        return tracer.failed(), ended
    finally:
        os.close(reader)
        os.close(writer)
        shutil.rmtree(folder)


def _install() -> None:
    if shutil.which("strace"):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "--yes", "--quiet", "strace"], check=True, stdout=subprocess.DEVNULL)
        return
    raise SystemExit("scripts/faults inject --traced needs strace: apt-get install strace")


def _drive(plan: Plan, gate: int, progress: Callable[[], None]) -> Report:
    """The late tasks wait until a tracer is attached."""

    def wait() -> None:
        progress()
        os.read(gate, 1)

    return drive(plan, progress, before_late=wait)


@dataclass(slots=True)
class _Tracer:
    """An strace of one role.

    Args:
        point: The fault.
        path: Where it writes what it sees.
        gate: Where the driver is told to go on.
    """

    point: TracedPoint
    path: str
    gate: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    def attach(self, caller: int) -> None:
        role = Role.ZYGOTE if self.point.role is Role.GUEST else self.point.role
        pid = _found(caller, role)
        fault = f"inject={self.point.calls}:error={self.point.errno}:when={self.point.number}"
        follow = ["-f"] if self.point.role is Role.GUEST else []
        words = ["strace", *follow, "-qq", "-o", self.path, "-e", f"trace={self.point.calls}", "-e", fault]
        self.process = subprocess.Popen([*words, "-p", str(pid)], stderr=subprocess.DEVNULL)
        _wait_until(lambda: f"TracerPid:\t{self.process.pid}\n" in _status(pid) if self.process else False)
        os.write(self.gate, b".")

    def end(self, caller: int) -> None:  # noqa: ARG002 - as every action
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def failed(self) -> int:
        """How many calls it let fail."""
        with contextlib.suppress(FileNotFoundError), open(self.path, encoding="utf-8", errors="replace") as file:
            return file.read().count("(INJECTED)")
        return 0


def _found(caller: int, role: Role) -> int:
    """The process of a role, once it is there."""
    _wait_until(lambda: bool(process_tree.find(caller)[role]))
    return process_tree.find(caller)[role][0]


def _status(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return file.read()
    return ""


def _wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again, as nothing tells of a process that is born or traced."""
    give_up_at = time.monotonic() + _ATTACHED_AFTER
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError("no tracer could be attached")
        os.sched_yield()
