"""The supervisor's handle of its zygote."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from gwsandbox.guest import pid_namespace
from gwsandbox.guest.zygote import run_zygote
from gwsandbox.ipc.birth import ANSWER, CREDENTIALS, NOT_READY, REQUEST, ROLES, unpack_held
from gwsandbox.ipc.channel import Packet, send_or_errno
from gwsandbox.linux.errnos import errno_of, is_not_now
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.options import RunOptions
from gwsandbox.model.task import Command, Task

_END_SECONDS = 10.0
_LONGEST_ANSWER = 1 << 14
_CREDENTIALS_SPACE = socket.CMSG_SPACE(CREDENTIALS.size)


class ZygoteProcess:
    """A zygote: forked here, and ended by ``close``. No method but ``reap`` ever waits.

    Attributes:
        pid: Of the process.
        pidfd: That tells when it is dead.
        init: The first process of its PID namespace, where it has one of its own, else 0. It is to outlive the zygote,
            as guests do.
        failure_errno: Why it ended, where one of its calls failed, or an answer of it could not be read; else 0.
    """

    def __init__(
        self,
        inherited_tasks: Mapping[int, Task | Command],
        not_callers: Iterable[int],
        options: RunOptions,
        *,
        limits: Mapping[int, tuple[int, int]],
    ) -> None:
        """Fork the zygote.

        Args:
            inherited_tasks: Tasks that came along with the fork, by number.
            not_callers: Descriptors of this process that are not the caller's, which the zygote closes.
            options: Of the run.
            limits: Resource limits of the caller, by number, which guests get back.

        Raises:
            OSError: The kernel refused.
        """
        self.failure_errno = 0
        # Each message is a packet, so that its descriptors cannot be taken for another's.
        self._socket, zygote_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as undo:
            undo.callback(self._socket.close)
            with zygote_end:
                not_its_own = [self._socket.fileno(), *not_callers]
                be_zygote = functools.partial(run_zygote, zygote_end, inherited_tasks, options, limits=limits)
                start = functools.partial(_start, be_zygote, not_its_own)
                if options.hardening.isolates:
                    # Its pids are those of its namespace; the kernel translates what comes as credentials.
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                self.pid, self.init = _fork(start, isolated=options.hardening.isolates)
            try:
                self.pidfd = os.pidfd_open(self.pid)
            except OSError:
                for pid in filter(None, (self.pid, self.init)):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                raise
            undo.pop_all()

    def fileno(self) -> int:
        """The descriptor that can be read when there is an answer, and written when a request fits."""
        return self._socket.fileno()

    def request(
        self,
        number: int,
        descriptors: Mapping[str, int | None],
        *,
        slot: int,
        work: bytes,
        is_command: bool,
        data_limit: int,
    ) -> Packet:
        """The request for a guest, to be sent by ``send``. The answers come in the order of the requests.

        Args:
            number: Key of a task that came along with the fork, or 0.
            descriptors: Those of ``ROLES`` that it has; they stay the caller's of this function.
            slot: That no other living guest has.
            work: The packed task; empty where it was inherited, or comes as a descriptor.
            is_command: Whether it is a program; its ``work`` is a pickled ``program.Program``.
            data_limit: RLIMIT_DATA of a program in bytes; 0: none.
        """
        mask, present = 0, []
        for place, role in enumerate(ROLES):
            if (fd := descriptors.get(role)) is not None:
                mask |= 1 << place
                present.append(fd)
        head = REQUEST.pack(number, data_limit, is_command, mask, slot)
        return Packet(head + work, tuple(present))

    def send(self, packet: Packet) -> int:
        """Send a request; 0 where it is sent, else the errno with which the kernel cannot take it now.

        Raises:
            BrokenPipeError: The zygote is gone. OSError: The kernel refuses the request for good.
        """
        return send_or_errno(self._socket, packet)

    def answer(self) -> int | dict[str, str] | None:
        """The next answer: the pid of a guest, which waits for its time, or minus an errno. ``None``: there is none.

        The first may be what holds the run's hardening, by mechanism.
        """
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_LONGEST_ANSWER, _CREDENTIALS_SPACE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if is_not_now(error):
                self.failure_errno = errno_of(error)
                self.kill()  # or the answer that cannot be read would wake us without end: another takes its place
            return None  # where it is gone, its pidfd announces that
        if len(data) < ANSWER.size:
            return None
        if len(data) > ANSWER.size:
            return unpack_held(data)
        pid: int = ANSWER.unpack(data)[0]
        return CREDENTIALS.unpack(ancillary[0][2])[0] if pid > 0 and self.init else pid

    def wake(self) -> None:
        """Continue it, if somebody has stopped it."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it; ``reap`` then takes its wait status."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def reap(self, seconds: float = 0) -> bool:
        """Whether it is dead and reaped, after at most ``seconds``."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return False
        _, status = os.waitpid(self.pid, os.WNOHANG)
        if os.WIFEXITED(status):
            self.failure_errno = self.failure_errno or os.WEXITSTATUS(status)
        return True

    def close(self) -> None:
        """Kill it, wait until it is dead, and close what belongs to it."""
        self._socket.close()
        self.kill()
        self.reap(_END_SECONDS)
        os.close(self.pidfd)


def _start(be_zygote: Callable[..., NoReturn], not_its_own: list[int], why_alone: str = "") -> NoReturn:
    """In the zygote."""
    for fd in not_its_own:
        with contextlib.suppress(OSError):
            os.close(fd)
    be_zygote(why_no_pid_namespace=why_alone)


def _fork(start: Callable[..., NoReturn], *, isolated: bool) -> tuple[int, int]:
    """Pids of the zygote and of the first process of its PID namespace; 0 where it has none of its own."""
    why = ""
    if isolated:
        zygote, init, why = pid_namespace.fork(start)
        if zygote:
            return zygote, init
    pid = os.fork()
    if pid == 0:
        start(why_alone=why)
    return pid, 0


def not_born(number: int) -> SandboxError:
    """Why the zygote forked no guest."""
    if number >= NOT_READY:
        return SandboxError("start zygote", errno=number - NOT_READY, remedy="see stderr, or the journal")
    return SandboxError("fork guest", errno=number, remedy="see ulimit -u and the cgroup's pids.max")
