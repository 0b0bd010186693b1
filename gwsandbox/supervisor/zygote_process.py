"""The supervisor's handle of its zygote."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
from collections.abc import Iterable, Mapping

from gwsandbox.guest.zygote import run_zygote
from gwsandbox.ipc.birth import ANSWER, REQUEST, ROLES
from gwsandbox.model.options import RunOptions
from gwsandbox.model.task import Command, Task


class ZygoteProcess:
    """The supervisor's handle of its zygote. Forks it; ``close`` ends it."""

    def __init__(
        self,
        inherited_tasks: Mapping[int, Task | Command],
        not_callers: Iterable[int],
        options: RunOptions,
        *,
        open_files: tuple[int, int],
        be_subreaper: bool,
    ) -> None:
        """Fork the zygote.

        Args:
            inherited_tasks: Tasks that came along with the fork, by number.
            not_callers: Descriptors of this process that are not the caller's, which the zygote closes.
            options: Of the run.
            open_files: The caller's RLIMIT_NOFILE, which guests get back.
            be_subreaper: Whether a guest's orphans are to stay below it.
        """
        # Each message is a packet, so that its descriptors cannot be taken for another's.
        self._socket, zygote_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            for fd in (self._socket.fileno(), *not_callers):
                with contextlib.suppress(OSError):
                    os.close(fd)
            run_zygote(zygote_end, inherited_tasks, options, open_files=open_files, be_subreaper=be_subreaper)
        zygote_end.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def order_birth(
        self, number: int, descriptors: Mapping[str, int | None], *, work: bytes, is_command: bool, data_limit: int
    ) -> None:
        """Ask for a guest. The answers come in the order of the asking.

        Args:
            number: Of the task.
            descriptors: Those of ``ROLES`` that it has; they stay the caller's of this function.
            work: The packed task; empty where it was brought along, or comes as a descriptor.
            is_command: Whether it is a program; its ``work`` is a pickled ``child.Program``.
            data_limit: See ``child.Setup``.

        Raises:
            OSError: The zygote is gone.
        """
        present = [(role, fd) for role in ROLES if (fd := descriptors.get(role)) is not None]
        mask = sum(1 << ROLES.index(role) for role, _ in present)
        message = REQUEST.pack(number, data_limit, is_command, mask) + work
        rights = array.array("i", [fd for _, fd in present])
        self._socket.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def answer(self) -> int | None:
        """The next answer: the pid of a guest, which waits for its time, or minus an errno. ``None``: not yet.

        Raises:
            EOFError: The zygote is gone.
        """
        try:
            data = self._socket.recv(ANSWER.size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        pid: int = ANSWER.unpack(data)[0]
        return pid

    def wake(self) -> None:
        """Continue it, if somebody has stopped it."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
