"""Which system calls a guest may make, as a filter for seccomp(2): tables of rules, and programs assembled from them.

A filter sees the number of a call and its six arguments as bare words. It cannot follow a pointer, so it cannot see
the flags of clone3, of which ``WITHOUT_CLONE3`` says that there is none: the C library then takes clone. Where an
argument is an ``int`` to the kernel, its upper half may hold anything, and only the lower is compared.

A call may come by the numbers of another architecture: by ``int 0x80`` those of 32-bit x86, which have a table here,
and with a bit set those of x32, which no working kernel is missed for.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from gwsandbox.linux.bpf import (
    ANY_BIT,
    EQUAL,
    GREATER_OR_EQUAL,
    Goto,
    Item,
    Jump,
    Label,
    assemble,
    end,
    keep_bits,
    load,
)

ALLOW = 0x7FFF_0000  # include/uapi/linux/seccomp.h
KILL = 0x8000_0000  # SECCOMP_RET_KILL_PROCESS, Linux 4.14
_ERRNO = 0x0005_0000
REFUSE = _ERRNO | errno.EPERM
NO_SUCH_CALL = _ERRNO | errno.ENOSYS

_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x4000_0000  # __X32_SYSCALL_BIT, arch/x86/include/uapi/asm/unistd.h
_LOW, _HIGH = (0, 4) if sys.byteorder == "little" else (4, 0)
_WORD = 0xFFFF_FFFF
_TOGETHER = 4  # numbers up to which comparing with each is as quick as halving

# AUDIT_ARCH_…, include/uapi/linux/audit.h
ARCHITECTURES = {"x86_64": 0xC000_003E, "i386": 0x4000_0003, "aarch64": 0xC000_00B7}
_NATIVE = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64",)}
"""The architectures whose calls a kernel of this machine takes, the native one first; without 32-bit ARM."""

# Numbers on x86_64, i386 and aarch64, by linux-libc-dev of Linux 6.1; open_tree_attr is of Linux 6.15.
_COLUMNS = ("x86_64", "i386", "aarch64")
_NUMBERS: dict[str, tuple[int | None, int | None, int | None]] = {
    "acct": (163, 51, 89),
    "add_key": (248, 286, 217),
    "bpf": (321, 357, 280),
    "clock_settime": (227, 264, 112),
    "clock_settime64": (None, 404, None),
    "clone": (56, 120, 220),
    "clone3": (435, 435, 435),
    "create_module": (174, 127, None),
    "delete_module": (176, 129, 106),
    "finit_module": (313, 350, 273),
    "fsconfig": (431, 431, 431),
    "fsmount": (432, 432, 432),
    "fsopen": (430, 430, 430),
    "fspick": (433, 433, 433),
    "init_module": (175, 128, 105),
    "io_uring_enter": (426, 426, 426),
    "io_uring_register": (427, 427, 427),
    "io_uring_setup": (425, 425, 425),
    "ioctl": (16, 54, 29),
    "ioperm": (173, 101, None),
    "iopl": (172, 110, None),
    "ioprio_set": (251, 289, 30),
    "kcmp": (312, 349, 272),
    "kexec_file_load": (320, None, 294),
    "kexec_load": (246, 283, 104),
    "keyctl": (250, 288, 219),
    "lookup_dcookie": (212, 253, 18),
    "migrate_pages": (256, 294, 238),
    "modify_ldt": (154, 123, None),
    "mount": (165, 21, 40),
    "mount_setattr": (442, 442, 442),
    "move_mount": (429, 429, 429),
    "move_pages": (279, 317, 239),
    "mq_open": (240, 277, 180),
    "msgget": (68, 399, 186),
    "name_to_handle_at": (303, 341, 264),
    "nfsservctl": (180, 169, 42),
    "open_by_handle_at": (304, 342, 265),
    "open_tree": (428, 428, 428),
    "open_tree_attr": (467, 467, 467),
    "perf_event_open": (298, 336, 241),
    "personality": (135, 136, 92),
    "pidfd_getfd": (438, 438, 438),
    "pivot_root": (155, 217, 41),
    "prlimit64": (302, 340, 261),
    "process_madvise": (440, 440, 440),
    "process_vm_readv": (310, 347, 270),
    "process_vm_writev": (311, 348, 271),
    "ptrace": (101, 26, 117),
    "quotactl": (179, 131, 60),
    "quotactl_fd": (443, 443, 443),
    "reboot": (169, 88, 142),
    "request_key": (249, 287, 218),
    "sched_setaffinity": (203, 241, 122),
    "sched_setattr": (314, 351, 274),
    "sched_setparam": (142, 154, 118),
    "sched_setscheduler": (144, 156, 119),
    "semget": (64, 393, 190),
    "setdomainname": (171, 121, 162),
    "sethostname": (170, 74, 161),
    "setns": (308, 346, 268),
    "setpriority": (141, 97, 140),
    "settimeofday": (164, 79, 170),
    "shmget": (29, 395, 194),
    "socket": (41, 359, 198),
    "socketcall": (None, 102, None),
    "socketpair": (53, 360, 199),
    "stime": (None, 25, None),
    "swapoff": (168, 115, 225),
    "swapon": (167, 87, 224),
    "syslog": (103, 103, 116),
    "umount": (None, 22, None),
    "umount2": (166, 52, 39),
    "unshare": (272, 310, 97),
    "userfaultfd": (323, 374, 282),
    "vhangup": (153, 111, 58),
    "vm86": (None, 166, None),
    "vm86old": (None, 113, None),
}

_CLONE_PARENT = 0x0000_8000  # include/uapi/linux/sched.h
_NAMESPACES = 0x7E02_0000  # CLONE_NEW*: NS, CGROUP, UTS, IPC, USER, PID, NET
_UNSHARE_HARMLESS = 0x0005_0F00  # CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM: of its own process only
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # include/uapi/asm-generic/ioctls.h
_PTRACE_ATTACH, _PTRACE_SEIZE = 16, 0x4206  # include/uapi/linux/ptrace.h
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16  # include/linux/socket.h
_SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_TYPE = 1, 5, 0xF  # include/linux/net.h
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1  # include/uapi/linux/resource.h, include/uapi/linux/ioprio.h
_PERSONALITIES = (0, 8, 0x4_0000, _WORD)  # PER_LINUX, PER_LINUX32, ADDR_NO_RANDOMIZE; the last asks only


class Test(NamedTuple):
    """Something that an argument of a call may be.

    Args:
        argument: Its place, from 0.
        value: What the lower half has to be, or ``None`` where a bit counts.
        mask: Of a value: the bits of the lower half that are compared. Else: of which one is to be set, in either half.
        negated: Of a value: whether the argument has to be another.
    """

    argument: int
    value: int | None
    mask: int = _WORD
    negated: bool = False


class Rule(NamedTuple):
    """What becomes of a call where ``test`` holds; without one it always does. The first that holds decides."""

    action: int
    test: Test | None = None


Policy = Mapping[str, tuple[Rule, ...]]
"""Rules by the name of the call. What has none, or of which none holds, is allowed."""

_REFUSED = (Rule(REFUSE),)


def _refused_if_any(argument: int, mask: int) -> tuple[Rule, ...]:
    return (Rule(REFUSE, Test(argument, None, mask)),)


def _refused_if(argument: int, *values: int) -> tuple[Rule, ...]:
    return tuple(Rule(REFUSE, Test(argument, value)) for value in values)


def _refused_unless(argument: int, *values: int, mask: int = _WORD) -> tuple[Rule, ...]:
    return (*(Rule(ALLOW, Test(argument, value, mask)) for value in values), Rule(REFUSE))


_DEFAULT: Policy = {
    **dict.fromkeys(
        (
            # mounts
            *("mount", "umount", "umount2", "pivot_root", "open_tree", "open_tree_attr", "move_mount"),
            *("fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr"),
            # the kernel's own code, and its parts with the longest list of holes
            *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
            *("init_module", "finit_module", "delete_module", "create_module", "kexec_load", "kexec_file_load"),
            *("iopl", "ioperm", "vm86", "vm86old", "lookup_dcookie", "nfsservctl"),
            # the machine, which is not the guest's
            *("reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "vhangup"),
            *("settimeofday", "stime", "clock_settime", "clock_settime64", "sethostname", "setdomainname"),
            # what other processes have
            *("keyctl", "add_key", "request_key", "open_by_handle_at", "pidfd_getfd", "setns"),
        ),
        _REFUSED,
    ),
    "unshare": _refused_if_any(0, ~_UNSHARE_HARMLESS & (1 << 64) - 1),
    "ioctl": _refused_if(1, _TIOCSTI, _TIOCLINUX),
}

_NO_TRACING: Policy = {
    # A debugger's child asks to be traced by its parent: that stays.
    "ptrace": _refused_if(0, _PTRACE_ATTACH, _PTRACE_SEIZE),
    **dict.fromkeys(("process_vm_readv", "process_vm_writev", "process_madvise"), _REFUSED),
}

_DOCUMENT: Policy = {
    **dict.fromkeys(
        (
            *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp"),
            *("msgget", "semget", "shmget", "mq_open"),  # they would outlive the guest
            *("name_to_handle_at", "modify_ldt"),
        ),
        _REFUSED,
    ),
    # Of another process of the same user: limits, priority, processors and memory.
    **dict.fromkeys(
        (
            *("prlimit64", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "sched_setattr"),
            *("migrate_pages", "move_pages"),
        ),
        _refused_unless(0, 0),
    ),
    "setpriority": (Rule(REFUSE, Test(0, _PRIO_PROCESS, negated=True)), *_refused_unless(1, 0)),
    "ioprio_set": (Rule(REFUSE, Test(0, _IOPRIO_WHO_PROCESS, negated=True)), *_refused_unless(1, 0)),
    "personality": _refused_unless(0, *_PERSONALITIES),
    # One of datagrams can send to any name, as if it came from socket().
    "socketpair": (
        Rule(REFUSE, Test(0, _AF_UNIX, negated=True)),
        *_refused_unless(1, _SOCK_STREAM, _SOCK_SEQPACKET, mask=_SOCK_TYPE),
    ),
}


def _of_families(network: str) -> tuple[Rule, ...]:
    """Sockets of these families only; that of machines and hypervisors is in no namespace, nor is cryptography."""
    return _refused_unless(0, *((_AF_UNIX,) if network == "none" else (_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK)))


WITHOUT_CLONE3: Policy = {"clone3": (Rule(NO_SUCH_CALL),)}
"""For guests, behind the filter of the zygote, which needs the call itself."""

FOR_VIEWS = ("mount", "setns", "umount2", "unshare")
"""Likewise, where the zygote enters and makes views of mounts."""


def policy(syscalls: str, network: str, *, tracing: bool, siblings: bool = False) -> dict[str, tuple[Rule, ...]]:
    """The rules for a run, by the name of the call.

    Args:
        syscalls: As in ``Hardening``.
        network: As in ``Hardening``.
        tracing: Whether something else keeps a guest from tracing processes that are not its own.
        siblings: Whether clone may make siblings, which the zygote needs where it has no clone3.
    """
    rules: dict[str, tuple[Rule, ...]] = {}
    if syscalls != "all":
        rules.update(_DEFAULT)
        rules.update({} if tracing else _NO_TRACING)
        rules["clone"] = _refused_if_any(0, _NAMESPACES if siblings else _NAMESPACES | _CLONE_PARENT)
    if syscalls == "document":
        rules.update(_DOCUMENT)
    if network != "host" or syscalls == "document":
        rules["socket"] = _REFUSED if (syscalls, network) == ("document", "none") else _of_families(network)
        rules.setdefault("socketpair", _refused_unless(0, _AF_UNIX))
        rules["socketcall"] = _REFUSED  # its family is behind a pointer; every i386 kernel since 4.3 has socket too
    return rules


def why_none(machine: str | None = None) -> str | None:
    """Why no filter can be made for this machine; ``None`` where one can."""
    machine = machine or os.uname().machine
    if machine not in _NATIVE or sys.maxsize < 1 << 32:
        return f"the numbers of system calls are known for {' and '.join(_NATIVE)} only, not for {machine}"
    return None


def make_filter(rules: Policy, *, foreign: bool, machine: str | None = None) -> bytes:
    """The program for seccomp(2).

    Args:
        rules: What to refuse.
        foreign: Whether programs of the machine's 32-bit architecture may run; what comes by its numbers is killed
            else.
        machine: Of ``uname``; this one's where it is not said.
    """
    native, *others = _NATIVE[machine or os.uname().machine]
    taken = [native, *(others if foreign else ())]
    items: list[Item] = [load(_ARCHITECTURE)]
    items += [Jump(EQUAL, ARCHITECTURES[name], then=name) for name in taken]
    items.append(end(KILL))
    for name in taken:
        items += [Label(name), load(_NUMBER), *_calls(name, rules)]
    items += [Label("allow"), end(ALLOW)]
    return assemble(items)


def _calls(architecture: str, rules: Policy) -> Iterator[Item]:
    """Find the number among those that have rules, and do what they say."""
    column = _COLUMNS.index(architecture)
    blocks: dict[tuple[Rule, ...], str] = {}
    for wanted in rules.values():  # most calls have the same rules: those stand once
        blocks.setdefault(wanted, f"{architecture} {len(blocks)}")
    numbered = [(number, blocks[rules[name]]) for name in rules if (number := _NUMBERS[name][column]) is not None]
    x32 = f"{architecture} x32"
    if architecture == "x86_64":
        yield Jump(GREATER_OR_EQUAL, _X32, then=x32)
    yield from _search(sorted(numbered), architecture)
    for wanted, label in blocks.items():
        yield Label(label)
        for place, rule in enumerate(wanted):
            yield from _rule(rule, f"{label} {place}")
        yield Goto("allow")
    if architecture == "x86_64":
        yield from (Label(x32), end(NO_SUCH_CALL))


def _search(numbered: Sequence[tuple[int, str]], name: str) -> Iterator[Item]:
    """By halves, as every call of a guest goes this way on kernels before 5.11."""
    if len(numbered) <= _TOGETHER:
        yield from (Jump(EQUAL, number, then=block) for number, block in numbered)
        yield Goto("allow")
        return
    middle = len(numbered) // 2
    upper = f"{name}>"
    yield Jump(GREATER_OR_EQUAL, numbered[middle][0], then=upper)
    yield from _search(numbered[:middle], f"{name}<")
    yield Label(upper)
    yield from _search(numbered[middle:], upper)


def _rule(rule: Rule, name: str) -> Iterator[Item]:
    """End with the action of the rule where its test holds; go on behind it else."""
    holds, fails = f"{name} holds", f"{name} fails"
    if (test := rule.test) is not None:
        low = _ARGUMENTS + 8 * test.argument + _LOW
        if test.value is not None:
            then, otherwise = (fails, holds) if test.negated else (holds, fails)
            yield from (load(low), keep_bits(test.mask), Jump(EQUAL, test.value, then=then, otherwise=otherwise))
        else:
            high = _ARGUMENTS + 8 * test.argument + _HIGH
            yield from (load(low), Jump(ANY_BIT, test.mask & _WORD, then=holds))
            yield from (load(high), Jump(ANY_BIT, test.mask >> 32, then=holds, otherwise=fails))
    yield from (Label(holds), end(rule.action), Label(fails))
