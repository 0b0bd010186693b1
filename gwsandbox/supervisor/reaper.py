"""The reaper: a process between the caller and the supervisor that only waits for the supervisor.

A guest runs as the same user as the supervisor and may stop or kill it. A stopped one would hold no deadline
any more, so the reaper continues it at once. When it was killed, the reaper kills and removes what it left:
through its cgroups, and as the subreaper that its orphans are handed to.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import NoReturn

from gwsandbox.backends.base import Backend
from gwsandbox.linux import procfs, syscalls


def keep(backend: Backend, supervise: Callable[[], None], link: int) -> NoReturn:
    """Become the reaper of a supervisor, which runs ``supervise``. Every signal is blocked in both.

    Args:
        backend: Prepared; both processes have it.
        supervise: What the supervisor does.
        link: The supervisor's end of the link; here it is closed, so that it ends with the supervisor.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    # A caller that ignores it has its children reaped by the kernel, and wait() would tell us nothing.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    syscalls.be_subreaper()
    code = 1
    try:
        pid = os.fork()
        if pid == 0:
            if backend.needs_subreaper:
                syscalls.be_subreaper()
            supervise()
            os.kill(os.getppid(), signal.SIGCONT)  # a guest may have stopped the reaper too; now none is left
            code = 0
        else:
            os.close(link)
            code = _wait(pid)
            if code:
                backend.destroy()
                kill_children()  # the zygote too, which is in no cgroup of ours
    except BaseException:  # noqa: BLE001 - a bug of ours: said where people look, then cleared up after
        traceback.print_exc()
    finally:
        os._exit(code)


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
    while pids := procfs.children(os.getpid()):
        for pid in pids:
            procfs.kill_tree(pid)
        for pid in pids:
            os.waitpid(pid, 0)
