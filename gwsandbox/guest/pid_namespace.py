"""A PID namespace for a run: its first process reaps what is left there, and when that ends, all of it ends.

Not one for each guest: the first process of a namespace ignores the signals that it has no handler for, its own abort
too. The supervisor stays outside, where it sees every process by its own numbers and goes on supervising. Who makes
such a namespace is not in it himself, so a helper makes it and has two siblings born in it::

    supervisor ──fork── helper (ends at once)
        ├── init      the first process of the namespace
        └── zygote    and the guests, its siblings

Who is no root makes a user namespace first, with his own user and nobody else in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import struct
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from gwsandbox.linux import confine, descriptors, namespaces, syscalls, unpatched

_PIDS = struct.Struct("=ii")  # of the zygote and of init; what follows is why there are none
_ANSWER = 1024
_HELPER_SECONDS = 10.0


class Birth(NamedTuple):
    """What came of ``fork``.

    Args:
        zygote: Its pid; 0 where there is no namespace, and so no zygote.
        init: Pid of the first process of the namespace.
        why_none: Why there is no namespace.
    """

    zygote: int
    init: int
    why_none: str


def fork(be_zygote: Callable[[], NoReturn]) -> Birth:
    """Fork a zygote into a PID namespace of its own.

    Args:
        be_zygote: What the zygote does.

    Raises:
        OSError: There is no process or descriptor for it.
    """
    with contextlib.ExitStack() as stack:
        told, tell = os.pipe()
        answer = stack.enter_context(open(told, "rb", buffering=0))
        supervisor = os.pidfd_open(os.getpid())
        stack.callback(os.close, supervisor)
        helper = os.fork()
        if helper == 0:
            _help(tell, supervisor, be_zygote, [told, tell, supervisor])
        os.close(tell)
        return _hear(answer.fileno(), helper)


def _hear(told: int, helper: int) -> Birth:
    poll = unpatched.module("select").poll()
    poll.register(told, select.POLLIN)
    answer = os.read(told, _ANSWER) if poll.poll(_HELPER_SECONDS * 1000) else b""
    os.kill(helper, signal.SIGKILL)  # it has nothing more to do
    os.waitpid(helper, 0)
    if len(answer) < _PIDS.size:
        raise OSError(errno.EAGAIN, "fork zygote: its helper process ended")
    zygote, init = _PIDS.unpack_from(answer)
    return Birth(zygote, init, answer[_PIDS.size :].decode(errors="replace"))


def _help(tell: int, supervisor: int, be_zygote: Callable[[], NoReturn], not_zygotes: list[int]) -> NoReturn:
    """In the helper, and what is born of it."""
    try:
        _unshare()
        init = _clone()
        if init == 0:
            _be_init(supervisor)
        zygote = _clone()
        if zygote == 0:
            for fd in not_zygotes:
                os.close(fd)
            be_zygote()
        os.write(tell, _PIDS.pack(zygote, init))
    except OSError as error:
        os.write(tell, _PIDS.pack(0, 0) + str(error).encode()[: _ANSWER // 2])
    finally:
        os._exit(0)


def _unshare() -> None:
    try:
        confine.unshare(confine.CLONE_NEWPID)
    except PermissionError:
        namespaces.own_user_namespace()
        confine.unshare(confine.CLONE_NEWPID)


def _clone() -> int:
    """A sibling: 0 in it."""
    try:
        return syscalls.clone3(None, syscalls.tid_address(), for_exec=False)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM}:
            raise
    return syscalls.clone(for_exec=False)


def _be_init(supervisor: int) -> NoReturn:
    """Be the first process of the namespace: the kernel reaps in its name, and kills all with it."""
    try:
        syscalls.die_with_parent()
        poll = select.poll()
        poll.register(supervisor, select.POLLIN)
        if poll.poll(0):  # it died before that call
            os._exit(0)
        confine.apply(confine.prepare_dumpable(dumpable=False), "prctl")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        descriptors.close_all_but(())
        while True:
            signal.pause()
    finally:
        os._exit(1)
