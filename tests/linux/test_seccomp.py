"""The filters: every number and argument against a table of what is meant, and each refusal by a real kernel."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from bpf_machine import call_data, run

from gwsandbox.linux import confine, seccomp
from gwsandbox.linux.seccomp import ALLOW, ARCHITECTURES, KILL, NO_SUCH_CALL, REFUSE, Policy, Rule

libc = ctypes.CDLL(None, use_errno=True)
MACHINES = ("x86_64", "aarch64")
ONLY_X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="calls of another architecture")

# --- what is meant, written a second time and in another way -------------------------------------------

ALWAYS = [
    "acct",
    "add_key",
    "bpf",
    "clock_settime",
    "clock_settime64",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "syslog",
    "umount",
    "umount2",
    "userfaultfd",
    "vhangup",
    "vm86",
    "vm86old",
]
IN_DOCUMENTS = [
    "socketcall",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "kcmp",
    "msgget",
    "semget",
    "shmget",
    "mq_open",
    "name_to_handle_at",
    "modify_ldt",
]
OF_ITSELF_IN_DOCUMENTS = [
    "prlimit64",
    "sched_setaffinity",
    "sched_setparam",
    "sched_setscheduler",
    "sched_setattr",
    "migrate_pages",
    "move_pages",
]
WHERE_TRACING_IS_OPEN = ["process_vm_readv", "process_vm_writev", "process_madvise"]
NEW_NAMESPACES = [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
HIGH = 1 << 32
WORDS = sorted(
    {0, 1, 2, 3, 5, 7, 8, 10, 11, 16, 17, 38, 40, 0x80, 0x800, 0x8000, 0x5411, 0x5412, 0x541C, 0x4206, 0x40000}
    | {0x80001, 0x80002, 0x80005, 0x0005_0F00, 0x003D_0F00, 0xFFFF_FFFF, HIGH, (1 << 64) - 1, *NEW_NAMESPACES}
    | {HIGH | 0x5412, HIGH | 1, HIGH | 2, HIGH | 16, 0x1200_0011, 0x0100_8000}
)


def refused(  # noqa: PLR0911, PLR0912 - a table
    name: str, first: int, second: int, asked: tuple[str, str, bool]
) -> bool:
    """Whether a call is meant to be refused. Where the kernel reads an int, only its lower half counts."""
    kind, network, tracing = asked
    first_int, second_int = first & 0xFFFF_FFFF, second & 0xFFFF_FFFF
    if kind == "document":
        if name in IN_DOCUMENTS:
            return True
        if name == "socketpair":
            return first_int != 1 or second_int & 0xF not in {1, 5}
        if name == "personality":
            return first_int not in {0, 8, 0x40000, 0xFFFF_FFFF}
        if name in OF_ITSELF_IN_DOCUMENTS:
            return first_int != 0
        if name == "setpriority":
            return first_int != 0 or second_int != 0
        if name == "ioprio_set":
            return first_int != 1 or second_int != 0
        if name == "socket":
            return network == "none" or first_int not in {1, 2, 10, 16}
    elif network != "host" and name in {"socket", "socketpair", "socketcall"}:
        if name == "socket" and network == "loopback":
            return first_int not in {1, 2, 10, 16}
        return name == "socketcall" or first_int != 1
    if kind == "all":
        return False
    if name in ALWAYS or (not tracing and name in WHERE_TRACING_IS_OPEN):
        return True
    if name == "ptrace" and not tracing:
        return first_int in {16, 0x4206}
    if name == "unshare":
        return first & ~0x0005_0F00 != 0
    if name == "clone":
        return any(first & flag for flag in [*NEW_NAMESPACES, 0x8000])
    return name == "ioctl" and second_int in {0x5412, 0x541C}


ASKED = [
    *itertools.product(("all", "default", "document"), ("host", "loopback", "none"), (True,)),
    ("default", "host", False),
]
BY_SECOND = {"ioctl", "socketpair", "setpriority", "ioprio_set"}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_every_call_is_answered_as_it_is_meant(machine: str, asked: tuple[str, str, bool]) -> None:
    kind, network, tracing = asked
    filter_ = seccomp.make_filter(seccomp.policy(kind, network, tracing=tracing), foreign=True, machine=machine)
    for architecture in ("x86_64", "i386") if machine == "x86_64" else (machine,):
        column = seccomp._COLUMNS.index(architecture)
        names = {numbers[column]: name for name, numbers in seccomp._NUMBERS.items()}
        for number in range(600):
            name = names.get(number, "")
            # The arguments of what has no rules of its own cannot matter; a few show it.
            few = (0, 0x5412, 1 << 63)
            words = WORDS if name and not _is_always(name, kind) else few
            for first, second in itertools.product(words, WORDS if name in BY_SECOND else few):
                answer = run(filter_, call_data(number, ARCHITECTURES[architecture], first, second))
                wanted = REFUSE if refused(name, first, second, asked) else ALLOW
                assert answer == wanted, f"{architecture} {name or number}({first:#x}, {second:#x})"


def _is_always(name: str, kind: str) -> bool:
    return name in ALWAYS or (kind == "document" and name in IN_DOCUMENTS)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_comes_by_other_numbers_is_not_let_through(machine: str) -> None:
    everything = seccomp.make_filter({}, foreign=False, machine=machine)
    for name, architecture in {**ARCHITECTURES, "arm": 0x4000_0028, "mips": 0x8, "none": 0}.items():
        assert run(everything, call_data(1, architecture)) == (ALLOW if name == machine else KILL)


def test_the_numbers_of_x32_do_not_exist() -> None:
    filter_ = seccomp.make_filter({}, foreign=True, machine="x86_64")
    for number in (0x4000_0000, 0x4000_00A5, 0x7FFF_FFFF, 0xFFFF_FFFF):
        assert run(filter_, call_data(number, ARCHITECTURES["x86_64"])) == NO_SUCH_CALL
    assert run(filter_, call_data(0x3FFF_FFFF, ARCHITECTURES["x86_64"])) == ALLOW


def test_a_machine_that_has_no_table_is_named() -> None:
    assert seccomp.why_none("riscv64") == (
        "the numbers of system calls are known for x86_64 and aarch64 only, not for riscv64"
    )
    assert seccomp.why_none("x86_64") is None


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "i386": Path("/usr/include/x86_64-linux-gnu/asm/unistd_32.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("architecture", HEADERS)
def test_the_numbers_are_the_kernels(architecture: str) -> None:
    if not HEADERS[architecture].exists():
        pytest.skip("no headers of the kernel (linux-libc-dev)")
    text = HEADERS[architecture].read_text(encoding="ascii")
    theirs = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    column = seccomp._COLUMNS.index(architecture)
    newer_than_headers = {"open_tree_attr"}
    for name, numbers in seccomp._NUMBERS.items():
        if name not in newer_than_headers and not (name == "clock_settime64" and architecture == "aarch64"):
            assert numbers[column] == theirs.get(name), name


# --- the real kernel ------------------------------------------------------------------------------------

MARK = 4001  # an errno that no kernel gives, in the place of EPERM, which many calls answer an ordinary user with


def marked(rules: Policy) -> Policy:
    """The same rules with refusals that cannot be taken for the kernel's own."""
    return {
        name: tuple(Rule(0x5_0000 | MARK if rule.action == REFUSE else rule.action, rule.test) for rule in these)
        for name, these in rules.items()
    }


def in_child(rules: Policy | None, call: Callable[[], int], *, foreign: bool = True) -> tuple[int, int]:
    """The errno (0: success) of a call behind a filter, and the signal that ended the process that made it."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            if rules is not None:
                confine.no_new_privs()
                confine.apply(confine.prepare_seccomp(seccomp.make_filter(rules, foreign=foreign)), "seccomp")
            result = call()
            os.write(writable, (-result if result < 0 else 0).to_bytes(4, "little"))
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    return int.from_bytes(answer, "little"), os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def native(name: str, *arguments: int) -> Callable[[], int]:
    number = seccomp._NUMBERS[name][seccomp._COLUMNS.index(os.uname().machine)]
    return by_number(number or -1, *arguments)


def by_number(number: int, *arguments: int) -> Callable[[], int]:
    def call() -> int:
        result: int = libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
        return -ctypes.get_errno() if result < 0 else result

    return call


def int_0x80(number: int, first: int = 0) -> Callable[[], int]:
    """A call by the numbers of 32-bit x86: push rbx; mov eax, edi; mov ebx, esi; int 0x80; pop rbx; ret."""

    def call() -> int:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex("53 89f8 89f3 cd80 5b c3"))
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int)(address)
        return int(function(number, first))

    return call


NATIVE = [name for name in ALWAYS if seccomp._NUMBERS[name][seccomp._COLUMNS.index(os.uname().machine)] is not None]
NOTHING = ((1 << 64) - 1,) * 6  # arguments that no call can do anything with


@pytest.mark.parametrize("name", NATIVE)
def test_a_call_is_refused_and_was_the_kernels_before(name: str) -> None:
    rules = marked(seccomp.policy("default", "host", tracing=True))
    assert in_child(rules, native(name, *NOTHING)) == (MARK, 0)
    assert in_child(None, native(name, *NOTHING))[0] != MARK


@pytest.mark.parametrize("name", [name for name in IN_DOCUMENTS if name != "socketcall"])
def test_a_call_is_refused_to_who_works_on_documents(name: str) -> None:
    if seccomp._NUMBERS[name][seccomp._COLUMNS.index(os.uname().machine)] is None:
        pytest.skip("not on this machine")
    assert in_child(marked(seccomp.policy("document", "none", tracing=True)), native(name, *NOTHING)) == (MARK, 0)
    assert in_child(marked(seccomp.policy("default", "host", tracing=True)), native(name, *NOTHING))[0] != MARK


CLONE_THREAD, CLONE_FS = 0x10000, 0x200  # the first alone is nothing that the kernel does


@pytest.mark.parametrize(
    ("name", "arguments", "same_but_harmless"),
    [
        ("clone", (0x1000_0000 | CLONE_THREAD,), (CLONE_THREAD,)),  # NEWUSER
        ("clone", (0x4000_0000 | CLONE_THREAD,), (CLONE_THREAD,)),  # NEWNET
        ("clone", (0x8000 | CLONE_THREAD,), (CLONE_THREAD,)),  # PARENT
        ("unshare", (0x1000_0000,), (CLONE_FS,)),  # NEWUSER
        ("unshare", (0x80,), (CLONE_FS,)),  # NEWTIME
        ("ioctl", (0, 0x5412, 0), (0, 0x5413, 0)),  # TIOCSTI, and TIOCGWINSZ
        ("ioctl", (0, HIGH | 0x5412, 0), (0, HIGH | 0x5413, 0)),
        ("ioctl", (0, 0x541C, 0), (0, 0x5413, 0)),  # TIOCLINUX
    ],
)
def test_a_call_is_refused_by_its_argument(
    name: str, arguments: tuple[int, ...], same_but_harmless: tuple[int, ...]
) -> None:
    rules = marked(seccomp.policy("default", "host", tracing=True))
    assert in_child(rules, native(name, *arguments)) == (MARK, 0)
    assert in_child(rules, native(name, *same_but_harmless))[0] != MARK
    assert in_child(None, native(name, *arguments))[0] != MARK


def test_tracing_is_left_to_children_where_nothing_else_holds_it() -> None:
    """PTRACE_TRACEME is what a debugger's child says; ATTACH and SEIZE take any process of the user."""
    rules = marked(seccomp.policy("default", "host", tracing=False))
    assert in_child(rules, native("ptrace", 16, os.getpid())) == (MARK, 0)
    assert in_child(rules, native("ptrace", 0x4206, os.getpid())) == (MARK, 0)
    assert in_child(rules, native("ptrace", 0)) == (0, 0)
    assert in_child(None, native("ptrace", 16, 1 << 22))[0] == errno.ESRCH


SOCKETS = [
    ("none", 2, 1, MARK),
    ("none", 10, 2, MARK),
    ("none", 1, 1, 0),
    ("loopback", 2, 1, 0),
    ("loopback", 40, 1, MARK),  # AF_VSOCK, which no namespace covers
    ("loopback", 38, 5, MARK),  # AF_ALG
    ("host", 2, 1, 0),
]


@pytest.mark.parametrize(("network", "family", "kind", "error"), SOCKETS)
def test_sockets_of_some_families_only(network: str, family: int, kind: int, error: int) -> None:
    rules = marked(seccomp.policy("default", network, tracing=True))
    assert in_child(rules, native("socket", family, kind, 0)) == (error, 0)


@pytest.mark.parametrize(("kind", "error"), [(1, 0), (5, 0), (0x80001, 0), (2, MARK), (3, MARK), (0x80002, MARK)])
def test_a_pair_of_sockets_that_can_reach_nobody_else_is_kept(kind: int, error: int) -> None:
    """A datagram socket of a pair can send to any name."""
    pair = (ctypes.c_int * 2)()
    rules = marked(seccomp.policy("document", "none", tracing=True))
    assert in_child(rules, native("socketpair", 1, kind, 0, ctypes.addressof(pair))) == (error, 0)
    assert in_child(None, native("socketpair", 1, kind, 0, ctypes.addressof(pair))) == (0, 0)


GETPID_OF_I386, MOUNT_OF_I386 = 20, 21


@ONLY_X86
def test_calls_by_int_0x80() -> None:
    if in_child(None, int_0x80(GETPID_OF_I386)) != (0, 0):
        pytest.skip("this kernel takes no 32-bit calls")
    rules = marked(seccomp.policy("default", "host", tracing=True))
    assert in_child(rules, int_0x80(GETPID_OF_I386)) == (0, 0)
    assert in_child(rules, int_0x80(MOUNT_OF_I386)) == (MARK, 0)
    assert in_child(rules, int_0x80(GETPID_OF_I386), foreign=False) == (0, signal.SIGSYS)


@ONLY_X86
def test_calls_by_the_numbers_of_x32() -> None:
    rules = seccomp.policy("default", "host", tracing=True)
    assert in_child(rules, by_number(0x4000_0000 | 39)) == (errno.ENOSYS, 0)


def start_everything() -> int:
    """What the C library does by clone3 where there is one: threads and programs."""
    seen: list[str] = []
    thread = threading.Thread(target=seen.append, args=("thread",))
    thread.start()
    thread.join()
    with subprocess.Popen(["/bin/true"]) as program:
        ended = program.wait()
    pid = os.posix_spawn("/bin/true", ["true"], os.environ)
    return -1 if ended or os.waitpid(pid, 0)[1] or seen != ["thread"] else 0


def test_threads_and_programs_start_without_clone3() -> None:
    assert in_child(None, native("clone3", 0, 0))[0] in {errno.EINVAL, errno.ENOSYS}
    assert in_child(seccomp.WITHOUT_CLONE3, native("clone3", 0, 0)) == (errno.ENOSYS, 0)
    assert in_child(seccomp.WITHOUT_CLONE3, start_everything) == (0, 0)
    everything = {**seccomp.policy("document", "none", tracing=False), **seccomp.WITHOUT_CLONE3}
    assert in_child(everything, start_everything) == (0, 0)


PROGRAM = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.umount2(None, 0)
os.kill(os.getpid(), 9 if ctypes.get_errno() == 4001 else 15)
"""


def become_a_program() -> int:
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", PROGRAM])


def test_a_program_has_the_filter_too() -> None:
    assert in_child(marked(seccomp.policy("default", "host", tracing=True)), become_a_program) == (0, signal.SIGKILL)
    assert in_child(None, become_a_program) == (0, signal.SIGTERM)
