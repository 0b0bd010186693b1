"""The reaper: a process between the caller and the supervisor that only waits for the supervisor.

A guest runs as the same user as the supervisor and may stop or kill it. A stopped one would hold no deadline
any more, so the reaper continues it. When it was killed, the reaper kills and removes what it left:
through its cgroups, and as the subreaper that its orphans are handed to.
"""

from __future__ import annotations

import _socket
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from gwsandbox.backends.base import Backend
from gwsandbox.ipc.channel import Started, pack, send
from gwsandbox.linux import descriptors, procfs, syscalls
from gwsandbox.model.errors import SandboxError


def watch_over(backend: Backend, supervise: Callable[[], None], end: _socket.socket, group: str) -> NoReturn:
    """Become the reaper of a supervisor, which runs ``supervise``. Every signal is blocked in both.

    Args:
        backend: Prepared; both processes have it.
        supervise: What the supervisor does.
        end: The supervisor's end of the socket; here it is closed, so that it ends with the supervisor.
        group: What the caller needs to clear up, where neither process can do it any more.

    Raises:
        SandboxError: The supervisor cannot be forked.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    # A caller that ignores it has its children reaped by the kernel, and wait() would report nothing.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    syscalls.be_subreaper()
    pid = _fork(backend)
    code = 1
    try:
        if pid == 0:
            _say_started(end, group)  # not by the reaper: where that is killed now, nobody would say it
            supervise()
            os.kill(os.getppid(), signal.SIGCONT)  # a guest may have stopped the reaper too; now none is left
            code = 0
        else:
            descriptors.close_all_but({*range(3), *backend.descriptors()})
            code = _wait(pid)
            try:
                if code:
                    backend.destroy()
            finally:
                kill_children()  # the zygote too, which is in no cgroup of ours
    except BaseException:  # noqa: BLE001 - a bug of ours: said where people look, then cleared up after
        traceback.print_exc()
    finally:
        os._exit(code)


def _fork(backend: Backend) -> int:
    try:
        return os.fork()
    except OSError as error:
        backend.destroy()
        remedy = "see ulimit -u and the cgroup's pids.max"
        raise SandboxError("fork supervisor", errno=error.errno or 0, remedy=remedy) from error


def _say_started(end: _socket.socket, group: str) -> None:
    """In the supervisor: send the caller its pidfd. It can do without, so nothing is waited for."""
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError:
        send(end, pack(Started(group), deque()))
        return
    try:
        send(end, pack(Started(group), deque(), pidfd))
    finally:
        os.close(pidfd)  # or the zygote and its guests would have it


def _wait(pid: int) -> int:
    while True:
        found, status = os.waitpid(-1, os.WUNTRACED)
        if found != pid:  # a dead guest's orphan
            continue
        if not os.WIFSTOPPED(status):
            return 0 if status == 0 else 1
        os.kill(pid, signal.SIGCONT)


def kill_children() -> None:
    """Kill and reap every child of this process, and what they leave to it as a subreaper."""
    not_ours: set[int] = set()
    while pids := set(procfs.children(os.getpid())) - not_ours:
        for pid in pids:
            try:
                procfs.kill_tree(pid)
            except PermissionError:
                not_ours.add(pid)
        pids -= not_ours
        while pids:  # the first process of a PID namespace ends when all others there are reaped
            pids.discard(os.waitpid(-1, 0)[0])
