"""What can only be seen from outside: when a task's process dies, and what supervision burns meanwhile."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import proc
from benchmarks.side import Absent, Side
from benchmarks.worker.loads import STARTED


@dataclass(frozen=True, slots=True)
class Life:
    """One task's process as seen from outside; instants of the monotonic clock."""

    pid: int
    began: float
    ended: float


class Fifo:
    """Where tasks write their pid and the time of their start (see ``worker.loads.report_start``)."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/starts"
        os.mkfifo(self.path, 0o600)
        self.fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)  # also a writer: never at its end

    def read(self) -> list[tuple[int, float]]:
        """Pid and start of each task that has written since."""
        with contextlib.suppress(BlockingIOError):
            return list(STARTED.iter_unpack(os.read(self.fd, STARTED.size * 64)))
        return []


@contextlib.contextmanager
def open_fifo() -> Iterator[Fifo]:
    """A FIFO in a folder of its own, which goes with the block."""
    with tempfile.TemporaryDirectory(prefix="gwsandbox-bench-") as folder:
        opened = Fifo(folder)
        try:
            yield opened
        finally:
            os.close(opened.fd)


def lives(side: Side, fifo: Fifo, **order: object) -> list[Life]:
    """Order a round of tasks that report, and see each begin and end. A task that ends before it is seen is left out.

    Raises:
        Absent: The side cannot do it.
    """
    # One loop, though long: one poll has to see starts, ends and the answer in their order.
    done = side.begin(**order)
    poll = select.poll()
    for fd in (done, fifo.fd):
        poll.register(fd, select.POLLIN)
    alive: dict[int, tuple[int, float]] = {}  # by pidfd
    found: list[Life] = []
    try:
        while True:
            ready = [fd for fd, _ in poll.poll()]
            now = time.monotonic()
            for fd in alive.keys() & set(ready):
                poll.unregister(fd)
                os.close(fd)
                found.append(Life(*alive.pop(fd), ended=now))
            for pid, began in fifo.read() if fifo.fd in ready else []:
                with contextlib.suppress(ProcessLookupError):
                    fd = os.pidfd_open(pid)
                    alive[fd] = pid, began
                    poll.register(fd, select.POLLIN)
            if done in ready:
                side.answer()
                return sorted(found, key=lambda life: life.began)
    finally:
        for fd in alive:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Rest:
    """What supervision burnt while its tasks slept.

    Args:
        share: CPU time per wall-clock time.
        processes: How many there were beside the tasks' own.
        system_calls: In ten seconds; ``None`` where strace did not count them.
        why_not_counted: The reason for that.
    """

    share: float
    processes: int
    system_calls: int | None
    why_not_counted: str = ""


_SETTLE = 0.5  # seconds from the last task's start until supervision counts as at rest
_COUNTED = 10.0  # seconds that strace counts


def rest(side: Side, starts: Fifo, *, tasks: int, seconds: float, count_calls: bool) -> Rest:
    """What everything below the side does while its tasks sleep, from half a second after their start.

    Raises:
        Absent: Its tasks do not start.
    """
    pause = seconds + (_COUNTED + 2 if count_calls else 0)
    done = side.begin(load="report_and_sleep", arguments=[starts.path, pause + _SETTLE], count=tasks)
    sleepers: list[int] = []
    while len(sleepers) < tasks:
        ready = select.select([starts.fd, done], [], [], 60)[0]
        if done in ready:
            side.answer()
        if starts.fd not in ready:
            raise Absent("its tasks do not start")
        sleepers += [pid for pid, _ in starts.read()]
    time.sleep(_SETTLE)  # no event says that a process is at rest
    watchers = sorted(set(proc.tree(side.pid)) - set(sleepers))
    start, before = time.monotonic(), sum(map(proc.cpu_seconds, watchers))
    time.sleep(seconds - 2 * _SETTLE)
    burnt = sum(map(proc.cpu_seconds, watchers)) - before
    share = burnt / (time.monotonic() - start)
    calls, why = _count_calls(watchers) if count_calls else (None, "not asked for")
    side.answer()
    return Rest(share, len(watchers), calls, why)


def _count_calls(pids: list[int]) -> tuple[int | None, str]:
    """System calls of some processes, and of what they fork, in ten seconds."""
    if shutil.which("strace") is None:
        return None, "strace is not installed"
    with tempfile.TemporaryDirectory(prefix="gwsandbox-bench-") as folder:
        output = Path(folder) / "calls"
        attach = [word for pid in pids for word in ("-p", str(pid))]
        tracer = subprocess.Popen(
            ["strace", "-c", "-f", "-o", str(output), *attach],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(_COUNTED)
        tracer.send_signal(signal.SIGINT)
        _, errors = tracer.communicate(timeout=60)
        text = output.read_text() if output.exists() else ""
        if not text and b"attach" in errors and b"attached" not in errors:
            return None, errors.decode(errors="replace").strip().splitlines()[-1]
    return _sum_of_calls(text), ""


def _sum_of_calls(summary: str) -> int:
    """The count in the "total" line of ``strace -c``; a run without calls has no lines at all."""
    for line in summary.splitlines():
        words = line.split()
        if words and words[-1] == "total":
            return int(words[3])
    return 0
