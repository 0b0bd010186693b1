"""What a guest tries that sees only what it is given. Each attempt raises ``OSError`` where it is refused.

As in ``attempts``: without hardening each is to succeed, and on the machine of the tests, so it leaves nothing that
somebody misses. What an attempt changes is a file that was made for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from attempts import syscall

MASK = 0x5A  # what is searched for is not held in one piece, or it would be found in what searches


@dataclass(frozen=True)
class World:
    """What is around a guest.

    Args:
        caller: Pid.
        neighbour: Pid of another guest, as the guest sees it.
        secret: Path of a file that was not given; in its folder is one more for each attempt.
        given: Path of one that may be read.
        in_temporary: Path of a file of the caller's in the machine's folder for temporary files.
        port: Of a server on the loopback interface.
        marks: For each kind, a text that is in memory somewhere: its first half, and its second one masked.
        variable: Name of one that the caller has set.
        early_variable: Name of one that the caller was started with.
        host: Name of the machine.
    """

    caller: int
    neighbour: int
    secret: str
    given: str
    in_temporary: str
    port: int
    marks: dict[str, tuple[bytes, bytes]]
    variable: str
    early_variable: str
    host: str

    def victim(self, name: str) -> str:
        """The file that an attempt may change."""
        return f"{os.path.dirname(self.secret)}/{name}"


@dataclass(frozen=True)
class Attempt:
    """Something to try.

    Args:
        name: Of the attempt.
        mechanism: Which of ``Hardening``'s keeps it from succeeding.
        call: What the guest does.
        root: Whether only root could do it without hardening.
    """

    name: str
    mechanism: str
    call: Callable[[World], object]
    root: bool = False


ATTEMPTS: dict[str, Attempt] = {}
Call = Callable[[World], object]


def attempt(mechanism: str, *, root: bool = False) -> Callable[[Call], Call]:
    def note(call: Call) -> Call:
        add(call.__name__, mechanism, call, root=root)
        return call

    return note


def add(name: str, mechanism: str, call: Call, *, root: bool = False) -> None:
    assert name not in ATTEMPTS
    ATTEMPTS[name] = Attempt(name, mechanism, call, root)


def nothing_there(*what: object) -> OSError:
    return FileNotFoundError(errno.ENOENT, f"nothing is seen of it: {what}")


# --- files ----------------------------------------------------------------------------------------------


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def _read_some(path: str, world: World) -> None:
    if not read(path):
        raise nothing_there(path)


add("read a file", "files", lambda world: read(world.secret))
add("see a file", "files", lambda world: os.lstat(world.secret))
add("list a folder", "files", lambda world: os.listdir(os.path.dirname(world.secret)))
add("read a file through its own root", "files", lambda world: read(f"/proc/self/root{world.secret}"))
add("read a file by way of ..", "files", lambda world: read("../" * 40 + world.secret))
add("read a file of the caller's in /tmp", "temporary", lambda world: read(world.in_temporary))
add("read a file through a neighbour", "ptrace", lambda world: read(f"/proc/{world.neighbour}/root{world.secret}"))
add("read a file by a neighbour's folder", "ptrace", lambda world: os.listdir(f"/proc/{world.neighbour}/cwd/"))
add("write to a file", "files", lambda world: os.close(os.open(world.secret, os.O_WRONLY | os.O_APPEND)))
add("make a file", "files", lambda world: os.close(os.open(world.victim("new"), os.O_CREAT | os.O_WRONLY)))
add("make a folder", "files", lambda world: os.mkdir(world.victim("folder")))
for _path in ("/etc/shadow", "/dev/kmsg", "/proc/slabinfo", "/proc/kpagecount"):
    add(f"read {_path}", "files", partial(_read_some, _path), root=True)
for _path in ("/etc/hostname", "/etc/machine-id", "/sys/kernel/uevent_seqnum", "/sys/class/net/lo/operstate"):
    add(f"read {_path}", "files", partial(_read_some, _path))


def list_what_is_there(path: str, world: World) -> None:
    if not os.listdir(path):
        raise nothing_there(path)


for _path in ("/run", "/var/log", "/sys/class", "/dev/pts", "/boot"):
    add(f"list {_path}", "files", partial(list_what_is_there, _path))

CHANGES: dict[str, Callable[[str], object]] = {
    "change the mode of": lambda path: os.chmod(path, 0o666),
    "change the times of": lambda path: os.utime(path, (1, 1)),
    "change the owner of": lambda path: os.chown(path, os.getuid(), os.getgid()),
    "mark": lambda path: os.setxattr(path, "user.mark", b"x"),
    "shorten": lambda path: os.truncate(path, 0),
    "rename": lambda path: os.rename(path, f"{path}-renamed"),
    "take away": os.unlink,
    "make a second name for": lambda path: os.link(path, f"{path}-second"),
    "make a link beside": lambda path: os.symlink(path, f"{path}-link"),
    "open for writing": lambda path: os.close(os.open(path, os.O_WRONLY)),
}


def _change_what_was_not_given(name: str, world: World) -> None:
    CHANGES[name](world.victim(name))


def _change_what_was_given(name: str, world: World) -> None:
    CHANGES[name](f"{world.given}-{name}")


for _name in CHANGES:
    add(f"{_name} a file", "files", partial(_change_what_was_not_given, _name))
    add(f"{_name} a given file", "files", partial(_change_what_was_given, _name))


@attempt("files", root=True)
def open_a_file_of_the_interpreter_to_write(world: World) -> None:
    os.close(os.open(os.__file__, os.O_WRONLY))


@attempt("files")
def open_a_stream_once_more(world: World) -> None:
    """What the caller has given as stdout may be a file of his, and more may be done with it than it was opened for."""
    os.close(os.open("/proc/self/fd/1", os.O_RDWR))


@attempt("files", root=True)
def change_its_root(world: World) -> None:
    os.chroot("/")


@attempt("capabilities", root=True)
def read_the_disk(world: World) -> None:
    path = f"/var/tmp/gwsandbox-disk-{os.getpid()}"
    try:
        os.mknod(path, 0o600 | 0o060000, os.stat(os.path.dirname(world.secret)).st_dev)
        read(path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


@attempt("files")
def make_a_terminal(world: World) -> None:
    for fd in os.openpty():
        os.close(fd)


@attempt("capabilities", root=True)
def become_another_user(world: World) -> None:
    os.setuid(1)


@attempt("capabilities", root=True)
def leave_its_groups(world: World) -> None:
    os.setgroups([])


# --- processes ------------------------------------------------------------------------------------------


@attempt("processes")
def list_processes(world: World) -> None:
    if not {int(name) for name in os.listdir("/proc") if name.isdigit()} - {os.getpid()}:
        raise nothing_there("/proc")


@attempt("processes")
def read_the_arguments_of_the_caller(world: World) -> None:
    read(f"/proc/{world.caller}/cmdline")


@attempt("ptrace")
def see_a_neighbour(world: World) -> None:
    os.stat(f"/proc/{world.neighbour}/stat")


@attempt("signals")
def send_a_signal_to_a_group(world: World) -> None:
    os.killpg(os.getpgid(world.neighbour), 0)


@attempt("signals")
def send_a_signal_with_a_value(world: World) -> None:
    signal.pidfd_send_signal(os.pidfd_open(world.neighbour), 0)


TOUCHES: dict[str, Callable[[int], object]] = {
    "lower the priority of": lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19),
    "choose the processors of": lambda pid: os.sched_setaffinity(pid, os.sched_getaffinity(pid)),
    "choose the scheduler of": lambda pid: os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0)),
    "lower the limits of": lambda pid: resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0)),
    "lower the priority on disks of": lambda pid: syscall("ioprio_set", 1, pid, 3 << 13),
    "move the memory of": lambda pid: syscall("migrate_pages", pid, 64, struct.pack("=Q", 1), struct.pack("=Q", 1)),
}


def _touch_a_neighbour(name: str, world: World) -> None:
    TOUCHES[name](world.neighbour)


for _name in TOUCHES:
    add(f"{_name} a neighbour", "system_calls", partial(_touch_a_neighbour, _name))


@attempt("system_calls")
def lower_the_priority_of_a_group(world: World) -> None:
    os.setpriority(os.PRIO_PGRP, os.getpgid(world.neighbour), 19)


@attempt("host_name")
def know_the_machine(world: World) -> None:
    if os.uname().nodename != world.host:
        raise nothing_there(world.host)


# --- the network ----------------------------------------------------------------------------------------


def connect(family: int, kind: int, address: object) -> None:
    with socket.socket(family, kind) as client:
        client.connect(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_DGRAM:
            client.send(b"x")


STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
add("connect by TCP", "network", lambda world: connect(socket.AF_INET, STREAM, ("127.0.0.1", world.port)))
add("send by UDP", "network", lambda world: connect(socket.AF_INET, DATAGRAM, ("127.0.0.1", world.port)))
add("connect to a named socket", "network", lambda world: connect(socket.AF_UNIX, STREAM, world.victim("socket")))
add("send to a named socket", "network", lambda world: connect(socket.AF_UNIX, DATAGRAM, world.victim("datagrams")))
FAMILIES = {
    "IP": (socket.AF_INET, STREAM, 0),
    "IP version 6": (socket.AF_INET6, DATAGRAM, 0),
    "MPTCP": (socket.AF_INET, STREAM, 262),
    "netlink": (socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "machines": (socket.AF_VSOCK, STREAM, 0),
    "cryptography": (38, socket.SOCK_SEQPACKET, 0),  # AF_ALG
    "X.25": (9, socket.SOCK_SEQPACKET, 0),
    "this machine": (socket.AF_UNIX, STREAM, 0),
}


def _make_a_socket(name: str, world: World) -> None:
    socket.socket(*FAMILIES[name]).close()


for _name in FAMILIES:
    add(f"make a socket of {_name}", "network", partial(_make_a_socket, _name))
add("make a packet socket", "network", lambda world: socket.socket(17, socket.SOCK_RAW, 0).close(), root=True)
add("make a raw socket", "network", lambda world: socket.socket(2, socket.SOCK_RAW, 1).close(), root=True)


@attempt("network")
def serve_by_tcp(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        pass


@attempt("network")
def send_by_a_pair_of_sockets(world: World) -> None:
    """One of datagrams can send to any name, though it was not made by socket()."""
    one, other = socket.socketpair(socket.AF_UNIX, DATAGRAM)
    with one, other:
        one.sendto(b"x", world.victim("datagrams"))


@attempt("network")
def see_the_connections_of_the_machine(world: World) -> None:
    with open("/proc/net/tcp", encoding="ascii") as file:
        if f":{world.port:04X} " not in file.read():
            raise nothing_there(world.port)


# --- what others had ------------------------------------------------------------------------------------


def search_memory(kind: str, world: World) -> None:
    """Look for a text in all memory that this process can write to."""
    first, second = world.marks[kind]
    with open("/proc/self/maps", encoding="ascii") as file:
        ranges = [line.split()[0].split("-") for line in file if " rw" in line and "[v" not in line]
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for start, end in ((int(a, 16), int(b, 16)) for a, b in ranges):
            with contextlib.suppress(OSError, ValueError):
                text = os.pread(memory.fileno(), min(end - start, 1 << 28), start)
                place = text.find(first)
                while place >= 0:
                    follows = text[place + len(first) : place + len(first) + len(second)]
                    if bytes(byte ^ MASK for byte in follows) == second:
                        return
                    place = text.find(first, place + 1)
    raise nothing_there(kind)


add("find what the caller knows", "clean_interpreter", partial(search_memory, "caller"))
add("find what an earlier task was given", "clean_interpreter", partial(search_memory, "earlier"))
add("find a variable of the caller's in memory", "environment", partial(search_memory, "environment"))


@attempt("environment")
def read_a_variable_of_the_callers(world: World) -> None:
    if world.variable not in os.environ:
        raise nothing_there(world.variable)


@attempt("environment")
def read_what_the_caller_was_started_with(world: World) -> None:
    if f"\0{world.early_variable}=".encode() not in b"\0" + read_all("/proc/self/environ"):
        raise nothing_there(world.early_variable)


def read_all(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def find_what_was_left(folder: str, world: World) -> None:
    if not [name for name in os.listdir(folder) if name.startswith("gwsandbox-left-")]:
        raise nothing_there(folder)


for _path in ("/tmp", "/var/tmp", "/dev/shm"):
    add(f"find what an earlier task left in {_path}", "temporary", partial(find_what_was_left, _path))
