"""A driver process: started, disturbed, waited for and cleared up after by the lab.

The lab is the subreaper of all that a driver starts, so whatever a round leaves becomes a child of the lab.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from faultlab import process_tree
from gwsandbox.backends.cgroup.backend import CgroupBackend
from gwsandbox.backends.cgroup.delegation import MOUNT, RUN_NAME
from gwsandbox.linux import syscalls

STALLED_SECONDS = 8.0
"""How long nothing of a round may use the processor before it is taken for hung. No task rests for so long."""
LONGEST_SECONDS = 120.0
"""How long a round may take that never rests."""
LEAVING_SECONDS = 6.0
"""How long what a driver has started may outlive it."""
_TICK_SECONDS = 0.5

OUTPUT_LINE = "line of output\n"
"""What tasks write that are to write something."""

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Action:
    """What the lab does to a driver.

    Args:
        progress: How many results must have come first.
        delay: Seconds from then on.
        act: What to do; gets the driver's pid.
        undoes: Whether it takes back an earlier one, and so is done in any case once that was done.
    """

    progress: int
    delay: float
    act: Callable[[int], None]
    undoes: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How a round ended.

    Args:
        report: What the driver's function returned; ``None`` where it did not come so far.
        exit_code: The driver's; minus the signal number when a signal ended it.
        hung: Whether it had to be killed.
        left: The processes that outlived it, in words.
        log: What it and its children wrote to stdout and stderr; after a hang also who waits where.
    """

    report: Report | None
    exit_code: int
    hung: bool
    left: tuple[str, ...]
    log: str


def run(
    drive: Callable[[Callable[[], None]], Report],
    actions: Sequence[Action] = (),
    *,
    longest: float = LONGEST_SECONDS,
    stalled: float = STALLED_SECONDS,
    backend: str = "rlimit",
    is_swept: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run ``drive`` in a fork of this process, under ``actions``.

    Args:
        drive: Gets a function to be called after each result; what it returns must be fit for JSON.
        actions: In the order of their moments.
        longest: Seconds after which it is taken for hung though it does not rest.
        stalled: Seconds after which it is taken for hung as it rests.
        backend: How limits are held: by "cgroup" no run group may be left either.
        is_swept: Whether the next run is to clear up after it; asked when it has ended.
    """
    syscalls.be_subreaper()
    report, log = os.memfd_create("report"), os.memfd_create("log")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_driver(drive, report, log, writer)
    os.close(writer)
    try:
        watch = _Watch(pid, reader, actions, stalled)
        hung = not watch.until_ended(longest)
        stacks = _stacks(pid) if hung else ""
        if hung:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        watch.undo()
        left = () if hung else _left(backend, is_swept=is_swept())
        clear_up()
        text = os.pread(report, 1 << 26, 0)
        said = os.pread(log, 1 << 20, 0).decode(errors="replace").replace(OUTPUT_LINE, "")
        exit_code = os.waitstatus_to_exitcode(status)
        return Ended(json.loads(text) if text else None, exit_code, hung, left, said + stacks)
    finally:
        for fd in (report, log, reader):
            os.close(fd)


def _left(backend: str, *, is_swept: bool) -> tuple[str, ...]:
    """Processes and run groups that are left, in words."""
    if backend != "cgroup":
        return wait_for_children()
    give_up_at = time.monotonic() + LEAVING_SECONDS
    while is_swept:
        group = CgroupBackend.find()
        group.prepare()
        group.destroy()
        is_swept = any(_run_groups()) and time.monotonic() < give_up_at  # who held it may just be dying
    processes = wait_for_children()
    return (*processes, *(f"run group {path}" for path in _run_groups()))


def _run_groups() -> Iterator[str]:
    for folder, names, _ in os.walk(MOUNT):
        yield from (f"{folder}/{name}" for name in names if re.fullmatch(RUN_NAME, name))


def _be_driver(drive: Callable[[Callable[[], None]], Report], report: int, log: int, progress: int) -> NoReturn:
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
        text = json.dumps(drive(lambda: _tell(progress))).encode()
        os.pwrite(report, text, 0)
        code = 0
    except BaseException:  # noqa: BLE001 - must not unwind into the lab's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _tell(progress: int) -> None:
    os.write(progress, b".")


class _Watch:
    """Waits for a driver, and does to it what is to be done."""

    def __init__(self, pid: int, progress: int, actions: Sequence[Action], stalled: float) -> None:
        self._pid = pid
        self._progress = progress
        self._stalled = stalled
        self._came = 0
        self._reached = time.monotonic()
        self._actions = list(actions)
        self._ticks = -1
        self._active = time.monotonic()

    def until_ended(self, longest: float) -> bool:
        """Whether it ended; else it stands still, or takes too long."""
        give_up_at = time.monotonic() + longest
        pidfd = os.pidfd_open(self._pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.register(self._progress, select.POLLIN)
            while time.monotonic() < give_up_at and not self._stands_still():
                ready = {fd for fd, _ in poll.poll(self._act() * 1000)}
                if pidfd in ready:
                    return True
                if self._progress in ready and not self._read_progress():
                    poll.unregister(self._progress)
            return False
        finally:
            os.close(pidfd)

    def _read_progress(self) -> bool:
        came = len(os.read(self._progress, 4096))
        self._came += came
        self._active = time.monotonic()
        if self._actions and self._came - came < self._actions[0].progress <= self._came:
            self._reached = time.monotonic()
        return bool(came)

    def _act(self) -> float:
        """Do what is due; seconds until the next is, or until the next look."""
        while self._actions and self._came >= self._actions[0].progress:
            wait = self._reached + self._actions[0].delay - time.monotonic()
            if wait > 0:
                return min(wait, _TICK_SECONDS)
            self._actions.pop(0).act(self._pid)
        return _TICK_SECONDS

    def undo(self) -> None:
        """Take back what was done and is to be taken back."""
        for action in self._actions:
            if action.undoes:
                action.act(self._pid)

    def _stands_still(self) -> bool:
        """Whether nothing of it has used the processor, or waits for one, for too long."""
        now = time.monotonic()
        if self._actions and self._came >= self._actions[0].progress:
            self._active = now
        if now - self._active < self._stalled:
            return False
        pids = [self._pid, *process_tree.descendants(self._pid)]
        ticks = process_tree.cpu_ticks(pids)
        busy = any(process_tree.state(pid) in {"R", "D"} for pid in pids)
        if ticks == self._ticks and not busy:
            return True
        self._ticks, self._active = ticks, now
        return False


def _stacks(pid: int) -> str:
    """Who waits where. The caller's own stack goes into its log."""
    lines = "\n".join(process_tree.report(pid))
    lines += "".join(map(process_tree.stack, process_tree.descendants(pid)))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGUSR1)
    select.select([], [], [], _TICK_SECONDS)  # faulthandler says nothing when it is done
    return f"\nhung:\n{lines}\n"


def wait_for_children() -> tuple[str, ...]:
    """Wait until nothing descends from this process any more; what is left after a while, in words."""
    give_up_at = time.monotonic() + LEAVING_SECONDS
    while pids := _reap():
        remaining = give_up_at - time.monotonic()
        if remaining <= 0 or not _wait_for_one(pids, remaining):
            pids = process_tree.descendants(os.getpid())
            return tuple(f"{process_tree.describe(pid)}\n{process_tree.stack(pid)}".strip() for pid in pids)
    return ()


def _wait_for_one(pids: Sequence[int], seconds: float) -> bool:
    """Whether one of these children ended in time."""
    pidfds = [os.pidfd_open(pid) for pid in pids]
    try:
        return bool(select.select(pidfds, [], [], seconds)[0])
    finally:
        for fd in pidfds:
            os.close(fd)


def _reap() -> list[int]:
    """Take the wait status of whoever has ended; the children that have not."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return process_tree.children(os.getpid())


def clear_up() -> None:
    """Kill and reap all that descends from this process."""
    while pids := _reap():
        for pid in process_tree.descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait_for_one(pids, LEAVING_SECONDS)
