"""The kernel's calls that Python has no wrapper for: one call, one function, the kernel's own name.

Only this module and ``confine`` use ctypes. Every function raises ``OSError`` whose text names the call. Numbers are
those of x86_64 and, from clone3 on, of every architecture (include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_TID_ADDRESS = 40

CLONE_PARENT = 0x0000_8000  # include/uapi/linux/sched.h
CLONE_CHILD_CLEARTID = 0x0020_0000
CLONE_CHILD_SETTID = 0x0100_0000
CLONE_INTO_CGROUP = 0x2_0000_0000  # Linux 5.7

F_ADD_SEALS, F_GET_SEALS = 1033, 1034  # include/uapi/linux/fcntl.h
F_SEAL_ALL = 0x000F  # SEAL | SHRINK | GROW | WRITE

# __NR_clone differs between architectures: include/uapi/asm-generic/unistd.h, and x86_64's own table.
_SYS_CLONE = 56 if os.uname().machine == "x86_64" else 220
AT_FDCWD = -100  # include/uapi/linux/fcntl.h
RENAME_NOREPLACE = 1  # include/uapi/linux/fs.h; Linux 3.15
RESOLVE_NO_SYMLINKS = 0x04  # include/uapi/linux/openat2.h
RESOLVE_BENEATH = 0x08

_SYS_CLONE3 = 435  # Linux 5.3
_SYS_CLOSE_RANGE = 436  # Linux 5.9
_SYS_OPENAT2 = 437  # Linux 5.6

# PyDLL keeps the GIL: a child of clone3 must come back holding it.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl = _libc.prctl
leave: Callable[[int], NoReturn] = _libc._exit
"""_exit(2). What ``os._exit`` calls is looked up by the dynamic linker again in each guest: a dozen page faults."""
_sigprocmask = _libc.sigprocmask
_NO_SIGNALS = bytes(128)  # an empty sigset_t
_python = ctypes.pythonapi
_before_fork = _python.PyOS_BeforeFork
_after_fork_child, _after_fork_parent = _python.PyOS_AfterFork_Child, _python.PyOS_AfterFork_Parent
for _hook in (_before_fork, _after_fork_child, _after_fork_parent):
    _hook.restype = None


def _longs(*numbers: int) -> tuple[ctypes.c_ulong, ...]:
    """Arguments of a system call, as wide as the kernel reads them; made once, as that is pages written in a guest."""
    return tuple(map(ctypes.c_ulong, numbers))


_DIE_WITH_PARENT = _longs(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
_OUTLIVE_PARENT = _longs(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
_BE_SUBREAPER = _longs(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

# struct clone_args up to its version 2, that of Linux 5.7: flags, pidfd, child_tid, parent_tid, exit_signal,
# stack, stack_size, tls, set_tid, set_tid_size, cgroup.
_CLONE_ARGS = struct.Struct("=11Q")
_CLONE3, _CLONE_ARGS_SIZE = ctypes.c_long(_SYS_CLONE3), ctypes.c_size_t(_CLONE_ARGS.size)


def _fail(call: str) -> OSError:
    errno = ctypes.get_errno()
    return OSError(errno, f"{call}: {os.strerror(errno)}")


def die_with_parent() -> None:
    """prctl(2) with PR_SET_PDEATHSIG: be killed when the parent ends."""
    if _prctl(*_DIE_WITH_PARENT):
        raise _fail("prctl")


def outlive_parent() -> None:
    """prctl(2) with PR_SET_PDEATHSIG: undo ``die_with_parent``."""
    if _prctl(*_OUTLIVE_PARENT):
        raise _fail("prctl")


def be_subreaper() -> None:
    """prctl(2) with PR_SET_CHILD_SUBREAPER: what descends from here and loses its parent becomes a child of ours."""
    if _prctl(*_BE_SUBREAPER):
        raise _fail("prctl")


def unblock_signals() -> None:
    """sigprocmask(2) with an empty mask. Python's own makes an enum of each signal, which costs 0.3 ms."""
    if _sigprocmask(signal.SIG_SETMASK, _NO_SIGNALS, None):
        raise _fail("sigprocmask")


def signalfd(numbers: Iterable[int]) -> int:
    """signalfd(2): a descriptor that does not block, from which pending signals are read that are blocked."""
    mask = sum(1 << (number - 1) for number in numbers).to_bytes(len(_NO_SIGNALS), "little")
    fd: int = _libc.signalfd(-1, mask, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise _fail("signalfd")
    return fd


def sender_of_signal(fd: int) -> int:
    """Take a pending signal from a descriptor of signalfd(2): the pid of its sender; 0 where that is not seen here."""
    info = os.read(fd, 128)  # struct signalfd_siginfo
    return int.from_bytes(info[12:16], sys.byteorder)


def close_range(first: int, last: int) -> None:
    """close_range(2): close the descriptors from ``first`` to ``last``, both included."""
    if _syscall(_SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0)):
        raise _fail("close_range")


def renameat2(source: str, target: str, flags: int) -> None:
    """renameat2(2) of paths that are absolute, or relative to the current folder. EINVAL: not on this file system."""
    paths = [ctypes.c_char_p(os.fsencode(path)) for path in (source, target)]
    if _libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], ctypes.c_uint(flags)):
        raise _fail("renameat2")


def openat2(folder: int, path: str, flags: int, *, resolve: int) -> int:
    """openat2(2) without a mode, so it creates no file. ENOSYS: older than Linux 5.6, or a seccomp filter."""
    how = struct.pack("=3Q", flags, 0, resolve)  # struct open_how: flags, mode, resolve
    arguments = ctypes.c_int(folder), ctypes.c_char_p(os.fsencode(path)), how, ctypes.c_size_t(len(how))
    fd: int = _syscall(ctypes.c_long(_SYS_OPENAT2), *arguments)
    if fd < 0:
        raise _fail("openat2")
    return fd


def tid_address() -> int:
    """Where the C library keeps this thread's id; 0 where the kernel does not say (no CHECKPOINT_RESTORE)."""
    address = ctypes.c_ulong()
    failed = _prctl(*_longs(_PR_GET_TID_ADDRESS, ctypes.addressof(address), 0, 0, 0))
    return 0 if failed else address.value


def clone3(cgroup: int | None, tid_address: int, *, for_exec: bool) -> int:
    """Fork a sibling by clone3(2): 0 in the child, its pid in the parent. The child is our parent's.

    It is born in the cgroup whose descriptor is ``cgroup``. Where it is only to become a program, Python's
    handlers do not run, as in ``subprocess``: those of ``threading`` alone cost half as much as the fork.

    To be called in a single-threaded process only: the C library's own fork handlers do not run.
    As glibc's fork does, the kernel is asked to renew the thread id that the C library keeps at ``tid_address``,
    without which the child's recursive locks would take it for its parent.
    """
    flags = CLONE_PARENT
    if tid_address:
        flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
    if cgroup is not None:
        flags |= CLONE_INTO_CGROUP
    # With CLONE_PARENT the signal at the child's exit must be 0 here: it is our own.
    arguments = _CLONE_ARGS.pack(flags, 0, tid_address, 0, 0, 0, 0, 0, 0, 0, cgroup or 0)
    return _fork("clone3", (_CLONE3, arguments, _CLONE_ARGS_SIZE), for_exec=for_exec)


def clone(*, for_exec: bool) -> int:
    """Fork a sibling by clone(2), for kernels and seccomp filters that refuse clone3; see there.

    The order of its arguments differs between architectures, but all after the flags are 0.
    """
    zero = ctypes.c_long(0)
    arguments = ctypes.c_long(_SYS_CLONE), ctypes.c_long(CLONE_PARENT), zero, zero, zero, zero
    return _fork("clone", arguments, for_exec=for_exec)


def _fork(call: str, arguments: tuple[object, ...], *, for_exec: bool) -> int:
    if not for_exec:
        _before_fork()
    pid: int = _syscall(*arguments)
    if pid == 0:
        if not for_exec:
            _after_fork_child()
        return 0
    failure = _fail(call) if pid < 0 else None
    if not for_exec:
        _after_fork_parent()
    if failure is not None:
        raise failure
    return pid
