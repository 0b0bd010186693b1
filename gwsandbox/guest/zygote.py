"""The zygote: a child of the supervisor that does nothing but fork guests.

A process that has just forked pays a page fault for each page that it writes to. The supervisor writes to
hundreds per task, the zygote's loop to a few dozen; so who keeps the books does not fork. The guests are not the
zygote's children but the supervisor's (CLONE_PARENT), which waits for them. And a fork of a caller that holds
gigabytes takes long: here no deadline waits for it.

A guest is born in its cgroup (CLONE_INTO_CGROUP), so it is never outside its limits, and the lock that moving a
process takes is not taken.
"""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import os
import pickle
import resource
import signal
import socket
import struct
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from gwsandbox.guest import child
from gwsandbox.ipc import call
from gwsandbox.linux import syscalls
from gwsandbox.model.task import Command, Task

# Number of the task, RLIMIT_DATA of a program, whether it is one, and which descriptors come along in the order
# of ``_ROLES``; what follows is the packed task where it was queued late and is small.
_MESSAGE = struct.Struct("=QQBB")
_ANSWER = struct.Struct("=i")  # pid, or minus an errno
_RIGHTS = [struct.Struct(f"={count}i") for count in range(8)]  # descriptors, as they come along
_ROLES = ("result", "go", "cgroup", "work", "stdin", "stdout", "stderr")
_CGROUP, _WORK, _STDIN, _STDOUT, _STDERR = (1 << place for place in range(2, len(_ROLES)))
LARGEST_WORK = 1 << 16  # bytes of a packed task up to which it travels in the message
_TRUNCATED = int(socket.MSG_CTRUNC)  # a plain number: Python computes with an enum's members in Python
_OOM_SCORE_RAISE = 500  # of 1000: guests go before the user's own service, after whatever asked to be first
_CLONE3_REFUSED = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.E2BIG})


class Zygote:
    """The supervisor's handle of its zygote. Forks it; ``close`` ends it."""

    def __init__(self, brought: Mapping[int, Task | Command], not_callers: Iterable[int], manner: child.Manner) -> None:
        """Fork the zygote.

        Args:
            brought: Tasks that came along with the fork, by number.
            not_callers: Descriptors of this process that are not the caller's, which the zygote closes.
            manner: How guests are to live.
        """
        # Each message is a packet, so that its descriptors cannot be taken for another's.
        self._socket, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            for fd in (self._socket.fileno(), *not_callers):
                with contextlib.suppress(OSError):
                    os.close(fd)
            _breed(others, brought, manner)
        others.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def order_birth(
        self, number: int, descriptors: Mapping[str, int | None], *, work: bytes, is_command: bool, data_limit: int
    ) -> None:
        """Ask for a guest. The answers come in the order of the asking.

        Args:
            number: Of the task.
            descriptors: Those of ``_ROLES`` that it has; they stay the caller's of this function.
            work: The packed task; empty where it was brought along, or comes as a descriptor.
            is_command: Whether it is a program; its ``work`` is a pickled ``child.Program``.
            data_limit: See ``child.Setup``.

        Raises:
            OSError: The zygote is gone.
        """
        present = [(role, fd) for role in _ROLES if (fd := descriptors.get(role)) is not None]
        mask = sum(1 << _ROLES.index(role) for role, _ in present)
        message = _MESSAGE.pack(number, data_limit, is_command, mask) + work
        rights = array.array("i", [fd for _, fd in present])
        self._socket.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def answer(self) -> int | None:
        """The next answer: the pid of a guest, which waits for its time, or minus an errno. ``None``: not yet.

        Raises:
            EOFError: The zygote is gone.
        """
        try:
            data = self._socket.recv(_ANSWER.size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        pid: int = _ANSWER.unpack(data)[0]
        return pid

    def wake(self) -> None:
        """Continue it, if somebody has stopped it."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _breed(control: socket.socket, brought: Mapping[int, Task | Command], manner: child.Manner) -> NoReturn:
    """Become the zygote. Comes back in the guests only, which do not come back."""
    try:
        syscalls.die_with_parent()
        setup = child.Setup(control.fileno(), manner)
        child.forget_the_caller(keep_ignored=manner.keep_terminal)
        if not manner.keep_terminal:  # else the terminal's signals come here too, and shall not end us
            syscalls.unblock_signals()
        resource.setrlimit(resource.RLIMIT_NOFILE, manner.open_files)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash shall not fill the disk with a guest's memory
        _raise_oom_score()
        child.rehearse()
        gc.freeze()  # or a guest's first collection would write to every page that it shares with us
        if manner.collect_garbage:
            gc.enable()
        _serve(control, brought, setup)
    except BaseException:  # noqa: BLE001 - a bug of ours: said where people look; the supervisor sees the end
        traceback.print_exc()
    finally:
        os._exit(1)


def _raise_oom_score() -> None:
    with open("/proc/self/oom_score_adj", "r+", encoding="utf-8") as file:
        score = int(file.read())
        file.seek(0)
        file.write(str(min(score + _OOM_SCORE_RAISE, 1000)))


def _serve(control: socket.socket, brought: Mapping[int, Task | Command], setup: child.Setup) -> None:
    space = socket.CMSG_SPACE(4 * len(_ROLES))
    message = bytearray(_MESSAGE.size + LARGEST_WORK)
    suits_programs = False
    while True:
        size, ancillary, flags, _ = control.recvmsg_into([message], space, socket.MSG_CMSG_CLOEXEC)
        if not size:
            return
        rights = ancillary[0][2] if ancillary else b""
        descriptors = _RIGHTS[len(rights) // 4].unpack(rights)
        if flags & _TRUNCATED:  # not all of them fit below RLIMIT_NOFILE
            for fd in descriptors:
                os.close(fd)
            control.send(_ANSWER.pack(-errno.EMFILE))
            continue
        # Here and not in the guest, which pays a page fault for each page that it is the first to write to.
        _fill(setup, message, size, descriptors, brought)
        if setup.is_command is not suits_programs:
            suits_programs = setup.is_command
            child.suit(programs=suits_programs)
        pid = _fork(setup)
        if pid == 0:
            child.live(setup)
        control.send(_ANSWER.pack(pid))
        for fd in descriptors:
            os.close(fd)


def _fork(setup: child.Setup) -> int:
    """As fork: the pid, or minus an errno. Where clone3 is refused, guests are no longer born inside."""
    if setup.born_inside:
        try:
            return syscalls.clone3(setup.cgroup, setup.tid_address, for_exec=setup.is_command)
        except OSError as error:
            if error.errno not in _CLONE3_REFUSED:
                return -(error.errno or errno.EAGAIN)
            setup.born_inside = False
    try:
        return syscalls.clone(for_exec=setup.is_command)
    except OSError as error:
        return -(error.errno or errno.EAGAIN)


def _fill(
    setup: child.Setup,
    message: bytearray,
    size: int,
    descriptors: Sequence[int],
    brought: Mapping[int, Task | Command],
) -> None:
    number, setup.data_limit, is_command, mask = _MESSAGE.unpack_from(message)
    setup.is_command = bool(is_command)
    present = iter(descriptors)
    setup.result, setup.go = next(present), next(present)
    setup.cgroup = next(present) if mask & _CGROUP else None
    work = next(present) if mask & _WORK else None
    setup.stdin = next(present) if mask & _STDIN else None
    setup.stdout = next(present) if mask & _STDOUT else None
    setup.stderr = next(present) if mask & _STDERR else None
    task = brought.get(number)
    if isinstance(task, Command):
        setup.program = task.argv, task.cwd, task.env
    elif task is not None:
        setup.call = task.func, task.args, task.kwargs
    elif is_command:
        setup.program = pickle.loads(message[_MESSAGE.size : size] if work is None else call.read_stored(work))
    else:
        setup.call = work or bytes(message[_MESSAGE.size : size])
