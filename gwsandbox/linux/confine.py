"""The kernel's calls by which a process gives something up: one call, one function, the kernel's own name.

Every function raises ``OSError`` whose text names the call. What a guest does itself is prepared in the zygote, as
arguments for ``apply``: in a fresh fork each object that Python makes or looks at is a page fault.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Sequence
from typing import Any

_MACHINES = ("x86_64", "aarch64")
_MACHINE = os.uname().machine
# Numbers on x86_64, and on aarch64 (include/uapi/asm-generic/unistd.h).
_NUMBERS = {
    "capget": (125, 90),
    "capset": (126, 91),
    "clone3": (435, 435),  # Linux 5.3
    "landlock_add_rule": (445, 445),  # Linux 5.13
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "mount": (165, 40),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "seccomp": (317, 277),
    "setgroups": (116, 159),
    "setns": (308, 268),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "umount2": (166, 39),
    "unshare": (272, 97),
}

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4  # include/uapi/linux/prctl.h
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECCOMP_SET_MODE_FILTER = 1  # include/uapi/linux/seccomp.h
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2  # Linux 4.17; else a filter turns on what slows the processor down
_CAPABILITY_VERSION_3 = 0x2008_0522  # include/uapi/linux/capability.h
_CAPABILITY_HEAD, _CAPABILITY_SETS = struct.Struct("=Ii"), struct.Struct("=6I")

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8  # include/uapi/linux/mount.h
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 0x20, 0x1000, 0x4000, 1 << 18, 1 << 19
MNT_DETACH = 2  # include/linux/fs.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x0002_0000, 0x0800_0000, 0x1000_0000  # include/uapi/linux/sched.h
CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWUTS = 0x2000_0000, 0x4000_0000, 0x0400_0000

# PyDLL keeps the GIL: the calls are short, and a guest has no second thread to let go on.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

Prepared = tuple[Any, ...]
"""The arguments of one system call, ready made."""


def prepare(call: str, *arguments: Any) -> Prepared:
    """A system call as ``apply`` takes it: numbers as wide as the kernel reads them, the rest by address.

    Raises:
        OSError: Its number is not known on this machine.
    """
    if _MACHINE not in _MACHINES:
        raise OSError(f"{call}: its number is known on {' and '.join(_MACHINES)} only, not on {_MACHINE}")
    number = _NUMBERS[call][_MACHINES.index(_MACHINE)]
    return tuple(ctypes.c_ulong(value) if isinstance(value, int) else value for value in (number, *arguments))


def apply(call: Prepared, name: str) -> int:
    """Make a prepared call, which ``name`` names in the error."""
    result: int = _syscall(*call)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _make(call: str, *arguments: Any) -> int:
    return apply(prepare(call, *arguments), call)


# --- privileges -----------------------------------------------------------------------------------------


def no_new_privs() -> None:
    """prctl(2) with PR_SET_NO_NEW_PRIVS: no program gives this process or what descends from it more rights."""
    _make("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def prepare_dumpable(*, dumpable: bool) -> Prepared:
    """prctl(2) with PR_SET_DUMPABLE: whether other processes of the user may look into this one."""
    return prepare("prctl", _PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def prepare_user(uid: int, gid: int, groups: Sequence[int]) -> tuple[Prepared, ...]:
    """setgroups(2), setresgid(2) and setresuid(2): become a user; and what a change of user takes back is set again."""
    return (
        prepare("setgroups", len(groups), struct.pack(f"={len(groups)}I", *groups)),
        prepare("setresgid", gid, gid, gid),
        prepare("setresuid", uid, uid, uid),
        prepare("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        prepare_dumpable(dumpable=True),
    )


def drop_bounding(capability: int) -> None:
    """prctl(2) with PR_CAPBSET_DROP: no program can bring this capability back. EINVAL: the kernel has it not."""
    _make("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)


def in_bounding(capability: int) -> bool:
    """prctl(2) with PR_CAPBSET_READ."""
    return bool(_make("prctl", _PR_CAPBSET_READ, capability, 0, 0, 0))


def clear_ambient() -> None:
    """prctl(2) with PR_CAP_AMBIENT_CLEAR_ALL."""
    _make("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def capget() -> tuple[int, int, int]:
    """capget(2): the effective, permitted and inheritable capabilities of this process, a bit each."""
    head, sets = _CAPABILITY_HEAD.pack(_CAPABILITY_VERSION_3, 0), ctypes.create_string_buffer(_CAPABILITY_SETS.size)
    _make("capget", head, sets)
    low = _CAPABILITY_SETS.unpack(sets.raw)
    return low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32


def prepare_capset(effective: int, permitted: int, inheritable: int) -> Prepared:
    """capset(2): what ``capget`` gave, or less."""
    sets = effective, permitted, inheritable
    words = [*(one & 0xFFFF_FFFF for one in sets), *(one >> 32 for one in sets)]
    return prepare("capset", _CAPABILITY_HEAD.pack(_CAPABILITY_VERSION_3, 0), _CAPABILITY_SETS.pack(*words))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2), at once."""
    apply(prepare_capset(effective, permitted, inheritable), "capset")


# --- filters --------------------------------------------------------------------------------------------


def prepare_seccomp(program: bytes) -> Prepared:
    """seccomp(2) with a filter, which has to be kept: the kernel copies it when the call is made."""
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count of instructions and their address.
    head = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
    head.code = code  # type: ignore[attr-defined]  # lives as long as what points to it
    return prepare("seccomp", _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, head)


def clone3_of_nothing() -> None:
    """clone3(2) without arguments, which makes no process: EINVAL where the call is there and permitted."""
    _make("clone3", None, 0)


def landlock_create_ruleset(attributes: bytes, flags: int) -> int:
    """landlock_create_ruleset(2): a descriptor; or, by its flags, what the kernel knows."""
    return _make("landlock_create_ruleset", attributes or None, len(attributes), flags)


def landlock_add_rule(ruleset: int, kind: int, attributes: bytes) -> None:
    """landlock_add_rule(2)."""
    _make("landlock_add_rule", ruleset, kind, attributes, 0)


def prepare_landlock_restrict_self(ruleset: int) -> Prepared:
    """landlock_restrict_self(2)."""
    return prepare("landlock_restrict_self", ruleset, 0)


# --- namespaces and mounts ------------------------------------------------------------------------------


def unshare(flags: int) -> None:
    """unshare(2)."""
    _make("unshare", flags)


def setns(namespace: int, flags: int) -> None:
    """setns(2): enter a namespace by its descriptor."""
    _make("setns", namespace, flags)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    texts = [text.encode(errors="surrogateescape") for text in (source, target, kind, data)]
    _make("mount", texts[0], texts[1], texts[2], flags, texts[3])


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _make("umount2", os.fsencode(target), flags)


def pivot_root(new: str, put_old: str) -> None:
    """pivot_root(2)."""
    _make("pivot_root", os.fsencode(new), os.fsencode(put_old))
