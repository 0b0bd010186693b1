"""What a guest tries that it is not to do. Each attempt raises ``OSError`` where it is refused, and returns else.

An attempt leaves nothing where it succeeds: without hardening it is to succeed, and on the machine of the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gwsandbox.linux.seccomp import _COLUMNS, _NUMBERS

libc = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine

CLONE_THREAD, CLONE_PARENT = 0x10000, 0x8000
NEW = {
    "mount": 0x0002_0000,
    "cgroup": 0x0200_0000,
    "uts": 0x0400_0000,
    "ipc": 0x0800_0000,
    "user": 0x1000_0000,
    "pid": 0x2000_0000,
    "net": 0x4000_0000,
}
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17


@dataclass(frozen=True)
class Attempt:
    """Something to try.

    Args:
        name: Of the attempt.
        mechanism: Which of ``Hardening``'s keeps it from succeeding.
        call: What the guest does; gets the pids of the caller and of a neighbour.
        root: Whether only root could do it without hardening.
        also: Errnos beside EPERM and EACCES that say it was refused.
    """

    name: str
    mechanism: str
    call: Callable[[int, int], object]
    root: bool = False
    also: tuple[int, ...] = ()


ATTEMPTS: dict[str, Attempt] = {}


def attempt(
    mechanism: str, *, root: bool = False, also: tuple[int, ...] = ()
) -> Callable[[Callable[[int, int], object]], Callable[[int, int], object]]:
    def note(call: Callable[[int, int], object]) -> Callable[[int, int], object]:
        add(call.__name__, mechanism, call, root=root, also=also)
        return call

    return note


def add(
    name: str, mechanism: str, call: Callable[[int, int], object], *, root: bool = False, also: tuple[int, ...] = ()
) -> None:
    assert name not in ATTEMPTS
    ATTEMPTS[name] = Attempt(name, mechanism, call, root, also)


def number(name: str) -> int:
    found = _NUMBERS[name][_COLUMNS.index(MACHINE)]
    assert found is not None
    return found


def syscall(name: str, *arguments: object) -> int:
    result: int = libc.syscall(
        ctypes.c_long(number(name)), *(ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def takes_its_arguments(name: str, *arguments: object, known: tuple[int, ...]) -> None:
    """The kernel looks at what cannot be done, and says so: that is not refused to it."""
    try:
        syscall(name, *arguments)
    except OSError as error:
        if error.errno not in known:
            raise


# --- system calls that reach deep into the kernel -------------------------------------------------------


@attempt("system_calls", root=True)
def mount_a_file_system(caller: int, neighbour: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        syscall("mount", b"none", folder.encode(), b"tmpfs", 0, b"size=4k")
        syscall("umount2", folder.encode(), 0)


@attempt("system_calls", root=True)
def open_a_file_system(caller: int, neighbour: int) -> None:
    os.close(syscall("fsopen", b"tmpfs", 0))


@attempt("system_calls", root=True)
def copy_a_tree_of_mounts(caller: int, neighbour: int) -> None:
    os.close(syscall("open_tree", -100, b"/proc", 1))  # OPEN_TREE_CLONE


@attempt("system_calls", root=True)
def make_a_map_of_bpf(caller: int, neighbour: int) -> None:
    os.close(syscall("bpf", 0, struct.pack("=4I", 2, 4, 4, 1) + bytes(56), 72))  # BPF_MAP_CREATE, an array


@attempt("system_calls", root=True)
def count_events_of_the_processor(caller: int, neighbour: int) -> None:
    attributes = struct.pack("=IIQ", 1, 64, 0) + bytes(48)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK
    os.close(syscall("perf_event_open", attributes, 0, -1, -1, 0))


@attempt("system_calls")
def handle_page_faults(caller: int, neighbour: int) -> None:
    os.close(syscall("userfaultfd", 1))  # UFFD_USER_MODE_ONLY


@attempt("system_calls")
def make_a_ring_of_io(caller: int, neighbour: int) -> None:
    os.close(syscall("io_uring_setup", 1, bytes(120)))


@attempt("system_calls")
def keep_a_key(caller: int, neighbour: int) -> None:
    key = syscall("add_key", b"user", b"gwsandbox-test", b"secret", 6, -2)  # KEY_SPEC_PROCESS_KEYRING
    syscall("keyctl", 3, key)  # KEYCTL_REVOKE


@attempt("system_calls")
def use_keys_of_the_session(caller: int, neighbour: int) -> None:
    syscall("keyctl", 0, -3, 0)  # KEYCTL_GET_KEYRING_ID


@attempt("system_calls", root=True)
def open_a_file_by_its_handle(caller: int, neighbour: int) -> None:
    handle, mount = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128)), ctypes.c_int()
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        syscall("name_to_handle_at", -100, file.name.encode(), handle, ctypes.byref(mount), 0)
        folder = os.open("/var/tmp", os.O_RDONLY)
        os.close(syscall("open_by_handle_at", folder, handle, os.O_RDONLY))


@attempt("system_calls", root=True)
def set_the_host_name(caller: int, neighbour: int) -> None:
    name = os.uname().nodename.encode()
    syscall("sethostname", name, len(name))


@attempt("system_calls", root=True)
def read_the_kernels_log(caller: int, neighbour: int) -> None:
    syscall("syslog", 10, None, 0)  # SYSLOG_ACTION_SIZE_BUFFER


@attempt("system_calls", root=True)
def load_another_kernel(caller: int, neighbour: int) -> None:
    takes_its_arguments("kexec_load", 0, 17, None, 1 << 20, known=(errno.EINVAL, errno.ENOSYS))


@attempt("system_calls", root=True)
def take_a_module_out(caller: int, neighbour: int) -> None:
    takes_its_arguments("delete_module", b"gwsandbox-none", 0, known=(errno.ENOENT, errno.ENOSYS))


@attempt("system_calls", root=True)
def load_a_module(caller: int, neighbour: int) -> None:
    takes_its_arguments("finit_module", -1, b"", 0, known=(errno.EBADF, errno.ENOSYS))


@attempt("system_calls", root=True)
def set_the_clock(caller: int, neighbour: int) -> None:
    takes_its_arguments("clock_settime", 0, struct.pack("=qq", 0, -1), known=(errno.EINVAL,))


@attempt("system_calls", root=True)
def restart_the_machine(caller: int, neighbour: int) -> None:
    takes_its_arguments("reboot", 0, 0, 0, 0, known=(errno.EINVAL,))


@attempt("system_calls", root=True)
def swap_to_a_file(caller: int, neighbour: int) -> None:
    takes_its_arguments("swapon", b"/nowhere", 0, known=(errno.ENOENT,))


@attempt("system_calls", root=True)
def account_for_processes(caller: int, neighbour: int) -> None:
    takes_its_arguments("acct", b"/nowhere", known=(errno.ENOENT, errno.ENOSYS))


def _in_a_namespace_of(kind: str, call: int, neighbour: int) -> None:
    syscall("unshare", NEW[kind])


for _kind in NEW:
    add(f"make_a_namespace_of_{_kind}", "user_namespaces", partial(_in_a_namespace_of, _kind), root=_kind != "user")


def _reaped(pid: int) -> None:
    if pid == 0:
        os._exit(0)
    with contextlib.suppress(ChildProcessError):  # a sibling is somebody else's
        os.waitpid(pid, 0)


@attempt("user_namespaces")
def clone_into_a_user_namespace(caller: int, neighbour: int) -> None:
    _reaped(syscall("clone", NEW["user"] | signal.SIGCHLD, 0, 0, 0, 0))


@attempt("user_namespaces", also=(errno.ENOSYS,))
def clone_into_a_user_namespace_by_clone3(caller: int, neighbour: int) -> None:
    _reaped(syscall("clone3", struct.pack("=8Q", NEW["user"], 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64))


@attempt("user_namespaces")
def make_a_sibling(caller: int, neighbour: int) -> None:
    _reaped(syscall("clone", CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))


@attempt("user_namespaces", also=(errno.ENOSYS,))
def make_a_sibling_by_clone3(caller: int, neighbour: int) -> None:
    _reaped(syscall("clone3", struct.pack("=8Q", CLONE_PARENT, 0, 0, 0, 0, 0, 0, 0), 64))


@attempt("user_namespaces", root=True)
def enter_a_namespace(caller: int, neighbour: int) -> None:
    fd = os.open("/proc/self/ns/uts", os.O_RDONLY)
    syscall("setns", fd, 0)


@attempt("system_calls", root=True)
def type_into_a_terminal(caller: int, neighbour: int) -> None:
    _, slave = os.openpty()
    fcntl.ioctl(slave, 0x5412, b"x")  # TIOCSTI


@attempt("system_calls", root=True)
def type_into_a_terminal_with_a_number_that_is_longer(caller: int, neighbour: int) -> None:
    _, slave = os.openpty()
    syscall("ioctl", slave, 1 << 32 | 0x5412, b"x")


# --- other processes ------------------------------------------------------------------------------------


def supervisor(caller: int, neighbour: int) -> int:
    if not (pid := os.getppid()):
        raise ProcessLookupError(errno.ESRCH, "its parent is in no namespace that it sees")
    return pid


def zygote(caller: int, neighbour: int) -> int:
    """The first child that the supervisor has forked; in a PID namespace of the run's own it is the second there."""
    if not os.getppid():
        return 2
    with open(f"/proc/{os.getppid()}/task/{os.getppid()}/children", encoding="ascii") as file:
        return int(file.read().split()[0])


def reaper(caller: int, neighbour: int) -> int:
    with open(f"/proc/{os.getppid()}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def the_caller(caller: int, neighbour: int) -> int:
    return caller


def a_neighbour(caller: int, neighbour: int) -> int:
    return neighbour


OTHERS = (supervisor, zygote, reaper, the_caller, a_neighbour)


def read_memory(pid: int) -> None:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))


def read_memory_by_a_system_call(pid: int) -> None:
    here = ctypes.create_string_buffer(8)
    vector = struct.pack("=QQ", ctypes.addressof(here), 8)
    takes_its_arguments("process_vm_readv", pid, vector, 1, struct.pack("=QQ", 4096, 8), 1, 0, known=(errno.EFAULT,))


def list_descriptors(pid: int) -> None:
    os.listdir(f"/proc/{pid}/fd")
    os.stat(f"/proc/{pid}/fd/0")


def read_environment(pid: int) -> None:
    with open(f"/proc/{pid}/environ", "rb") as file:
        file.read(1)


def take_a_descriptor(pid: int) -> None:
    os.close(syscall("pidfd_getfd", os.pidfd_open(pid), 2, 0))


def trace(pid: int) -> None:
    syscall("ptrace", PTRACE_SEIZE, pid, 0, 0)  # ends with this process


def look_through_its_root(pid: int) -> None:
    os.stat(f"/proc/{pid}/root/etc")


def send_a_signal(pid: int) -> None:
    os.kill(pid, 0)


def send_a_signal_by_pidfd(pid: int) -> None:
    signal.pidfd_send_signal(os.pidfd_open(pid), 0)


def send_a_signal_to_a_thread(pid: int) -> None:
    if libc.tgkill(pid, pid, 0) < 0:
        raise OSError(ctypes.get_errno(), "tgkill")


def stop_and_continue(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


DEEDS: dict[Callable[[int], None], str] = {
    read_memory: "ptrace",
    read_memory_by_a_system_call: "ptrace",
    list_descriptors: "ptrace",
    read_environment: "ptrace",
    take_a_descriptor: "ptrace",
    trace: "ptrace",
    look_through_its_root: "ptrace",
    send_a_signal: "signals",
    send_a_signal_by_pidfd: "signals",
    send_a_signal_to_a_thread: "signals",
    stop_and_continue: "signals",
}


def _do(deed: Callable[[int], None], whom: Callable[[int, int], int], caller: int, neighbour: int) -> None:
    deed(whom(caller, neighbour))


for _deed, _mechanism in DEEDS.items():
    for _whom in OTHERS:
        add(f"{_deed.__name__} of {_whom.__name__}", _mechanism, partial(_do, _deed, _whom))


@attempt("abstract_sockets")
def connect_to_the_callers_socket(caller: int, neighbour: int) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0gwsandbox-test-{caller}")


@attempt("abstract_sockets")
def send_to_the_callers_socket(caller: int, neighbour: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", f"\0gwsandbox-test-{caller}-datagram")


# --- the kernel's files ---------------------------------------------------------------------------------


def _open_to_write(path: str, caller: int, neighbour: int) -> None:
    os.close(os.open(path.format(caller=caller), os.O_WRONLY))


for _path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/hostname"):
    add(f"write {_path}", "control_files", partial(_open_to_write, _path), root=True, also=(errno.EROFS,))
for _path in ("/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state", "/sys/kernel/uevent_helper"):
    if os.path.exists(_path):
        add(f"write {_path}", "control_files", partial(_open_to_write, _path), root=True, also=(errno.EROFS,))


def own_cgroup() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mount = next((line.split()[4] for line in file if " - cgroup2 " in line), "/none")
    with open("/proc/self/cgroup", encoding="ascii") as file:
        return mount + next(line[3:].strip() for line in file if line.startswith("0::"))


def _in_own_cgroup(name: str, caller: int, neighbour: int) -> None:
    _open_to_write(f"{own_cgroup()}/{name}", caller, neighbour)


for _name in ("cgroup.procs", "cgroup.subtree_control", "memory.max", "memory.oom.group", "pids.max", "cgroup.freeze"):
    add(f"write {_name} of its own", "control_files", partial(_in_own_cgroup, _name), also=(errno.EROFS,))
    if _name != "memory.oom.group":
        add(f"write {_name} of the run", "control_files", partial(_in_own_cgroup, f"../{_name}"), also=(errno.EROFS,))


@attempt("control_files", also=(errno.EROFS,))
def make_a_cgroup(caller: int, neighbour: int) -> None:
    os.mkdir(f"{own_cgroup()}/inner")
    os.rmdir(f"{own_cgroup()}/inner")


@attempt("control_files", also=(errno.EROFS,))
def shut_its_cgroup(caller: int, neighbour: int) -> None:
    os.open(f"{own_cgroup()}/cgroup.procs", os.O_WRONLY)
    mode = os.stat(own_cgroup()).st_mode & 0o777
    os.chmod(own_cgroup(), mode)


# --- privileges -----------------------------------------------------------------------------------------


@attempt("no_new_privs")
def gain_privileges_by_a_program(caller: int, neighbour: int) -> None:
    if libc.prctl(39, 0, 0, 0, 0) != 0:  # PR_GET_NO_NEW_PRIVS
        raise OSError(errno.EPERM, "no program gives it any")


@attempt("capabilities", root=True)
def make_a_device(caller: int, neighbour: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.mknod(f"{folder}/device", 0o600 | 0o060000, os.makedev(1, 0))


@attempt("capabilities", root=True)
def raise_a_hard_limit(caller: int, neighbour: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))  # of 0
    except ValueError as error:  # as Python says it
        raise OSError(errno.EPERM, str(error)) from error


@attempt("capabilities", root=True)
def be_of_no_use_to_the_oom_killer(caller: int, neighbour: int) -> None:
    with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        file.write("-1000")


@attempt("capabilities", root=True)
def set_up_an_interface(caller: int, neighbour: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = bytearray(struct.pack("16sh", b"lo", 0)) + bytearray(22)
        fcntl.ioctl(any_socket, 0x8913, request)  # SIOCGIFFLAGS
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


@attempt("capabilities", root=True)
def be_nicer_than_others(caller: int, neighbour: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1)


@attempt("capabilities", root=True)
def make_a_file_that_nobody_can_change(caller: int, neighbour: int) -> None:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        flags = bytearray(struct.pack("=i", 0))
        fcntl.ioctl(file, 0x80086601, flags)  # FS_IOC_GETFLAGS
        (old,) = struct.unpack("=i", flags)
        fcntl.ioctl(file, 0x40086602, struct.pack("=i", old | 0x10))  # FS_IOC_SETFLAGS, FS_IMMUTABLE_FL
        fcntl.ioctl(file, 0x40086602, struct.pack("=i", old))


BUSES = ("/run/dbus/system_bus_socket", f"/run/user/{os.getuid()}/bus", "/run/systemd/private", "/run/docker.sock")


def _connect(path: str, caller: int, neighbour: int) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


for _path in BUSES:
    if os.path.exists(_path):
        add(f"connect to {_path}", "buses", partial(_connect, _path), also=(errno.ECONNREFUSED, errno.ENOENT))


@attempt("ipc", root=True)
def leave_shared_memory(caller: int, neighbour: int) -> None:
    """System V's, which outlives a process; and a run, where it is everybody's."""
    identifier = syscall("shmget", caller, 4096, 0o1600)
    try:
        if os.readlink("/proc/self/ns/ipc") != OUTSIDE:
            raise OSError(errno.EPERM, "only this run sees it")
    finally:
        libc.shmctl(identifier, 0, None)  # IPC_RMID


OUTSIDE = os.readlink("/proc/self/ns/ipc")
