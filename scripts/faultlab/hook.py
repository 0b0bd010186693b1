"""Lets the n-th system call of a kind, of one role, fail: the module that is patched into the processes of a run.

A run's processes are forks of the caller, so what is patched there before it begins is patched in all of them. A clean
interpreter ("forkserver") imports this module as one of those to preload. A process knows its role by its place:
one whose pid is not the one that it had when it last looked is a fork, and plays the next role.

Only calls that the package makes count, itself or through the standard library; not those of a task.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import FrameType, ModuleType
from typing import Any

from faultlab.process_tree import ROLES, Role
from gwsandbox.linux import confine, syscalls

VARIABLE = "GWSANDBOX_FAULTLAB"
"""Names the folder that holds the fault and the counters, for a clean interpreter."""

_FULL = ("EMFILE", "ENFILE", "ENOMEM")
_MEMORY = ("ENOMEM",)

ERRNOS: Mapping[str, tuple[str, ...]] = {
    "open": (*_FULL, "EACCES", "EIO"),
    "os.open": (*_FULL, "EACCES", "EIO"),
    "os.read": ("EIO", "ENOMEM"),
    "os.pread": ("EIO", "ENOMEM"),
    "os.preadv": ("EIO", "ENOMEM"),
    "os.write": ("EIO", "ENOSPC", "ENOMEM"),
    "os.pwrite": ("EIO", "ENOSPC", "ENOMEM"),
    "os.ftruncate": ("ENOMEM", "EPERM", "EIO"),
    "os.fstat": _MEMORY,
    "os.stat": ("ENOMEM", "EACCES"),
    "os.listdir": (*_FULL, "EACCES"),
    "os.scandir": (*_FULL, "EACCES"),
    "os.mkdir": ("ENOSPC", "ENOMEM", "EAGAIN", "EACCES", "EROFS"),
    "os.rmdir": ("EBUSY", "EACCES", "ENOMEM"),
    "os.unlink": ("EACCES", "EIO", "EROFS"),
    "os.rename": ("EACCES", "EIO", "ENOSPC", "EROFS"),
    "os.replace": ("EACCES", "EIO", "ENOSPC", "EROFS"),
    "os.link": ("EACCES", "EIO", "ENOSPC", "EMLINK"),
    "os.fsync": ("EIO", "ENOSPC"),
    "os.dup": ("EMFILE",),
    "os.dup2": ("EMFILE", "EBUSY"),
    "os.pipe": ("EMFILE", "ENFILE"),
    "os.pipe2": ("EMFILE", "ENFILE"),
    "os.fork": ("EAGAIN", "ENOMEM"),
    "os.kill": ("EPERM",),
    "os.setsid": ("EPERM",),
    "os.pidfd_open": (*_FULL, "EPERM"),
    "os.memfd_create": _FULL,
    "os.eventfd": _FULL,
    "os.eventfd_write": ("EAGAIN", "ENOMEM"),
    "os.set_blocking": _MEMORY,
    "os.set_inheritable": _MEMORY,
    "os.chdir": ("EACCES",),
    "fcntl.fcntl": ("EBUSY", "EPERM"),
    "fcntl.flock": ("ENOLCK", "ENOMEM"),
    "mmap.mmap": ("ENOMEM", "EACCES"),
    "resource.setrlimit": ("EPERM",),
    "resource.prlimit": ("EPERM", "ENOMEM"),
    "signal.pidfd_send_signal": ("EPERM",),
    "select.epoll": _FULL,
    "epoll.register": ("ENOSPC", "ENOMEM"),
    "epoll.modify": _MEMORY,
    "socket.socketpair": (*_FULL, "ENOBUFS"),
    "socket.send": ("ENOBUFS", "ENOMEM", "EAGAIN"),
    "socket.sendmsg": ("ENOBUFS", "ENOMEM", "EAGAIN", "ETOOMANYREFS"),
    "socket.recv": ("ENOMEM", "EAGAIN"),
    "socket.recvmsg": ("ENOMEM", "EAGAIN"),
    "socket.recvmsg_into": ("ENOMEM",),
    "socket.shutdown": ("ENOTCONN",),
    "subprocess.Popen": ("EAGAIN", "ENOMEM", "EMFILE"),
    **{
        f"syscalls.{name}": ("EPERM", "ENOMEM", "EINVAL")
        for name in ("die_with_parent", "outlive_parent", "be_subreaper", "unblock_signals", "close_range")
    },
    "syscalls.signalfd": _FULL,
    "syscalls.openat2": (*_FULL, "EACCES", "EIO"),
    "confine.apply": ("EPERM", "ENOSYS", "EINVAL", "ENOMEM"),
    "syscalls.clone3": ("EAGAIN", "ENOMEM", "ENOSYS", "EPERM"),
    "syscalls.clone": ("EAGAIN", "ENOMEM"),
    "syscalls.renameat2": ("EACCES", "EIO", "ENOSPC"),
}
"""What can fail, by which name it is known, and with what."""

_MODULES: Mapping[str, ModuleType] = {
    "confine": confine,
    "fcntl": fcntl,
    "mmap": mmap,
    "os": os,
    "resource": resource,
    "select": select,
    "signal": signal,
    "subprocess": subprocess,
    "syscalls": syscalls,
}
_CALLS = tuple(ERRNOS)
_NUMBER = struct.Struct("=Q")
_SHOWN = 3  # failures of which the stack is kept
_open, _write, _close = os.open, os.write, os.close  # as they are before they are patched
_FIRED = 0  # place of the number of failures in the counters' file
_SIZE = _NUMBER.size * (1 + len(ROLES) * len(_CALLS))


class Hook:
    """Counts the calls of each role, and lets some of one kind fail.

    Args:
        folder: Holds ``fault.json`` (``null``: count only) and the counters, which all processes share.
        role: Of this process.
    """

    def __init__(self, folder: str, role: Role) -> None:
        with open(f"{folder}/fault.json", encoding="ascii") as file:
            fault = json.load(file)
        with open(f"{folder}/counters", "r+b") as counters:
            self._counters = mmap.mmap(counters.fileno(), _SIZE)
        self._pid = os.getpid()
        self._role = ROLES.index(role)
        self._fault: dict[str, Any] = fault or {}
        self._get_pid = os.getpid
        self._place = f"{folder}/stacks"

    def fails(self, call: str) -> int:
        """The errno with which this call is to fail; 0: it is not."""
        if not _is_of_the_package(sys._getframe(2)):
            return 0
        if (pid := self._get_pid()) != self._pid:
            self._pid, self._role = pid, min(self._role + 1, len(ROLES) - 1)
        count = self._count(_NUMBER.size * (1 + self._role * len(_CALLS) + _CALLS.index(call)))
        fault = self._fault
        if not fault or fault["call"] != call or fault["role"] != ROLES[self._role]:
            return 0
        if count != fault["number"] and not (fault["lasting"] and count > fault["number"]):
            return 0
        if self._count(_FIRED) <= _SHOWN:
            _write_stack(self._place)
        return getattr(errno, fault["errno"])  # type: ignore[no-any-return]

    def _count(self, place: int) -> int:
        (count,) = _NUMBER.unpack_from(self._counters, place)
        _NUMBER.pack_into(self._counters, place, count + 1)
        return int(count) + 1


def _is_of_the_package(frame: FrameType | None) -> bool:
    """Whether a call comes from the package, however deep in the standard library."""
    while frame is not None:
        room = frame.f_globals.get("__name__", "").partition(".")[0]
        if room in {"gwsandbox", "faultlab", "__main__"}:
            return bool(room == "gwsandbox")
        frame = frame.f_back
    return False


def _write_stack(path: str) -> None:
    """Say where a call fails, the innermost first."""
    lines = []
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        lines.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    # Not opened beforehand: processes of the package close what they do not know.
    fd = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _write(fd, f"fails in {' < '.join(lines[:8])}\n".encode())
    _close(fd)


def stacks(folder: str) -> str:
    """Where the first calls failed."""
    with contextlib.suppress(FileNotFoundError), open(f"{folder}/stacks", encoding="utf-8") as file:
        return file.read()
    return ""


def counts(folder: str) -> tuple[int, dict[tuple[Role, str], int]]:
    """How many calls failed, and how many of each kind each role made."""
    with open(f"{folder}/counters", "rb") as file:
        numbers = [number for (number,) in _NUMBER.iter_unpack(file.read())]
    found = {
        (role, call): numbers[1 + i * len(_CALLS) + j] for i, role in enumerate(ROLES) for j, call in enumerate(_CALLS)
    }
    return numbers[_FIRED], {key: number for key, number in found.items() if number}


def prepare(folder: str, fault: Mapping[str, Any] | None) -> None:
    """Make the files of a hook."""
    with open(f"{folder}/fault.json", "w", encoding="ascii") as file:
        json.dump(fault, file)
    with open(f"{folder}/counters", "wb") as counters:
        counters.truncate(_SIZE)


# --- patching --------------------------------------------------------------------------------------------


def install(folder: str, role: Role) -> None:
    """Patch this process; its forks come after it in the order of roles."""
    hook = Hook(folder, role)
    for call in _CALLS:
        module, _, name = call.rpartition(".")
        if call == "open":
            builtins.open = _wrapped(hook, call, open)
        elif module == "socket" and name != "socketpair":
            setattr(socket.socket, name, _wrapped(hook, call, getattr(socket.socket, name)))
        elif module == "socket":
            socket.socketpair = _wrapped(hook, call, socket.socketpair)
        elif module in _MODULES and call != "select.epoll":
            setattr(_MODULES[module], name, _wrapped(hook, call, getattr(_MODULES[module], name)))
    made = select.epoll
    opened = _wrapped(hook, "select.epoll", made)
    setattr(select, "epoll", lambda *args, **options: _Epoll(hook, opened(*args, **options)))  # noqa: B010 - a class


def _wrapped(hook: Hook, call: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **options: Any) -> Any:
        if number := hook.fails(call):
            raise OSError(number, os.strerror(number))
        return function(*args, **options)

    return wrapper


class _Epoll:
    """Stands for an epoll object, whose class cannot be patched."""

    def __init__(self, hook: Hook, epoll: select.epoll) -> None:
        self.register = _wrapped(hook, "epoll.register", epoll.register)
        self.modify = _wrapped(hook, "epoll.modify", epoll.modify)
        self.unregister = epoll.unregister
        self.poll = epoll.poll
        self.fileno = epoll.fileno
        self.close = epoll.close
        self._epoll = epoll

    @property
    def closed(self) -> bool:
        """As of ``select.epoll``."""
        return self._epoll.closed


if VARIABLE in os.environ and __name__ == "faultlab.hook":
    install(os.environ[VARIABLE], Role.REAPER)
