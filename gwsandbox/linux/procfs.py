"""Processes, their memory and their cgroups, read from /proc (proc(5)).

A file of a process that is gone gives nothing: ``None``, 0 or an empty list, as each function says. A file that
is there and may not be read raises ``PermissionError``: the process lives, and another user's rights are on it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from typing import NamedTuple

from gwsandbox.model.errors import SandboxError

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CHUNK = 1 << 15  # files of /proc come in pieces of a page or more: a short one is the last
_TICKS = os.sysconf("SC_CLK_TCK")
_FORK_NO_EXEC = 0x40  # PF_FORKNOEXEC, include/linux/sched.h
_INITIAL_CGROUP_NAMESPACE = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO, include/linux/proc_ns.h
_DELETED = " (deleted)"  # what the kernel adds to the path of a cgroup that was removed
_ROUNDS = 50  # of looking for processes that were born while their tree was stopped


def _read(path: str) -> bytes | None:
    """The bytes of a file of /proc; ``None`` where the process is gone.

    Raises:
        PermissionError: The process is there, and the file may not be read.
        OSError: No descriptor or memory is left to read it with.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # half the system calls of open()
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        data = os.read(fd, _CHUNK)
        while chunk := os.read(fd, _CHUNK) if len(data) >= _CHUNK // 2 else b"":
            data += chunk
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return data


def check_mount() -> None:
    """See that /proc shows the processes that this one knows by their numbers.

    Raises:
        SandboxError: It does not.
    """
    try:
        shown = os.readlink("/proc/self")
    except OSError as error:
        raise SandboxError(
            "read processes", path="/proc/self", errno=error.errno or 0, remedy="mount -t proc proc /proc"
        ) from error
    if shown != str(os.getpid()):
        raise SandboxError(
            "read processes: what is mounted there is of another PID namespace than this process",
            path="/proc",
            value=f"{shown} and not {os.getpid()}",
            remedy="mount -t proc proc /proc, inside of the namespace",
        )


# --- one process -----------------------------------------------------------------------------------------


class Process(NamedTuple):
    """What /proc/PID/stat says of a process.

    Args:
        state: One letter, as "R" or "Z".
        executed: Whether it runs a program of its own, and not the one that its parent ran when it forked.
        cpu: Seconds of CPU time of its own threads.
        waited_cpu: Seconds of CPU time of the children that it waited for.
        threads: Their number.
        started: When it started, in clock ticks since boot.
        resident: Bytes of RAM that it has mapped, shared pages included.
    """

    state: str
    executed: bool
    cpu: float
    waited_cpu: float
    threads: int
    started: int
    resident: int


def look(pid: int | str) -> Process | None:
    """The process as it is now; ``None`` where it is gone.

    Args:
        pid: Its number, or "self".
    """
    fields = (_read(f"/proc/{pid}/stat") or b"").rpartition(b")")[2].split()
    if len(fields) < 22:
        return None
    user, system, waited_user, waited_system = map(int, fields[11:15])
    return Process(
        fields[0].decode(),
        not int(fields[6]) & _FORK_NO_EXEC,
        (user + system) / _TICKS,
        (waited_user + waited_system) / _TICKS,
        int(fields[17]),
        int(fields[19]),
        int(fields[21]) * _PAGE,
    )


def start_time(pid: int | str) -> int:
    """When a process started, in clock ticks since boot; 0 where it is gone."""
    found = look(pid)
    return found.started if found else 0


def is_zombie(pid: int) -> bool:
    """Whether a process is dead and waits to be reaped, or is gone."""
    try:
        found = look(pid)
    except PermissionError:
        return False
    return found is None or found.state in "ZX"


def resident(pid: int) -> int:
    """Bytes of RAM that a process has mapped, shared pages included; 0 where it is gone. Cheap."""
    fields = (_read(f"/proc/{pid}/statm") or b"").split()
    return int(fields[1]) * _PAGE if len(fields) > 1 else 0


def data(pid: int) -> int:
    """Bytes that count against RLIMIT_DATA, and those of the stack; 0 where the process is gone."""
    fields = (_read(f"/proc/{pid}/statm") or b"").split()
    return int(fields[5]) * _PAGE if len(fields) > 5 else 0


class Shares(NamedTuple):
    """What a process uses, each page divided by the processes that share it.

    Args:
        total: Bytes of RAM and swap (PSS + SwapPss).
        shared_memory: Bytes of it that are of files in memory (tmpfs, memfd, shared mappings).
    """

    total: int
    shared_memory: int


def shares(pid: int) -> Shares:
    """The shares of a process in RAM and swap.

    Walks the page tables of the process: milliseconds for gigabytes. 0 where it is gone; where the kernel has
    no smaps_rollup (before Linux 4.14) or denies it, what ``resident`` says.
    """
    try:
        text = _read(f"/proc/{pid}/smaps_rollup")
    except PermissionError:
        text = None
    if not text:
        return Shares(resident(pid), 0)
    figures = {words[0]: int(words[1]) * 1024 for line in text.splitlines()[1:] if (words := line.split())}
    return Shares(figures.get(b"Pss:", 0) + figures.get(b"SwapPss:", 0), figures.get(b"Pss_Shmem:", 0))


def proportional(pid: int) -> int:
    """Bytes of RAM and swap of a process, each shared page divided by its sharers; see ``shares``."""
    return shares(pid).total


def nameless_files(pid: int) -> dict[tuple[int, int], int]:
    """Bytes of the files that a process has open and that have no name any more, as memfds, by device and inode.

    Empty where it is gone, and where they may not be looked at.
    """
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                status = os.stat(f"/proc/{pid}/fd/{fd}")
                if status.st_nlink == 0 and stat.S_ISREG(status.st_mode):
                    found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found


def memory_devices() -> set[int]:
    """The devices whose files are in memory: that of memfds, and of every tmpfs that is mounted here."""
    fd = os.memfd_create("gwsandbox-device", os.MFD_CLOEXEC)
    try:
        found = {os.fstat(fd).st_dev}
    finally:
        os.close(fd)
    for line in (_read("/proc/self/mountinfo") or b"").splitlines():
        words = line.split()
        if words[words.index(b"-") + 1] == b"tmpfs":
            major, minor = map(int, words[2].split(b":"))
            found.add(os.makedev(major, minor))
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of the children that it waited for; 0.0 where it is gone."""
    found = look(pid)
    return found.cpu + found.waited_cpu if found else 0.0


def limit(pid: int, name: str) -> int:
    """The hard limit ``name`` of a process, as in "Max file locks"; -1 where it has none, or is gone."""
    for line in (_read(f"/proc/{pid}/limits") or b"").decode().splitlines():
        if line.startswith(name):
            hard = line[len(name) :].split()[1]
            return -1 if hard == "unlimited" else int(hard)
    return -1


def available_memory() -> int:
    """Bytes that can be used on this host without swapping, as the kernel estimates them (MemAvailable)."""
    for line in (_read("/proc/meminfo") or b"").splitlines():
        if line.startswith(b"MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def tasks_of_user(uid: int) -> int:
    """Processes and threads of a user, which is what RLIMIT_NPROC counts."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


# --- trees of processes ----------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """The children of a process, of all its threads, zombies included; empty where it is gone."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, (_read(f"/proc/{pid}/task/{thread}/children") or b"").split())
    return found


def tree(pid: int) -> Iterator[int]:
    """A process and all its descendants, parents before children."""
    found = [pid]
    for parent in found:  # grows while it is walked; not by recursion, as guests may be deeper than that goes
        yield parent
        found += children(parent)


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants.

    All are stopped first, so that none can fork away while the walk goes on; a process that was born behind
    the walk's back is handed to the nearest subreaper when its parent dies, which has to look for it.

    Raises:
        PermissionError: One of them is another user's. The others are killed.
    """
    refused = stop_tree(pid)
    for found in reversed(list(tree(pid))):  # the children first: the dead have none to be found by
        refused = _send(found, signal.SIGKILL) or refused
    if refused:
        raise refused


def stop_tree(pid: int) -> PermissionError | None:
    """SIGSTOP a process and all its descendants; what came of the last one that is another user's."""
    stopped: set[int] = set()
    refused: PermissionError | None = None
    for _ in range(_ROUNDS):
        before = len(stopped)
        for found in tree(pid):
            if found not in stopped:  # in a later round: born behind the walk's back
                refused = _send(found, signal.SIGSTOP) or refused
                stopped.add(found)
        if len(stopped) == before:
            break
    return refused


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a process and to those of its descendants that are in its process group, as a terminal does.

    kill(2) of the whole group may reach others: under ``gwsandbox run`` a program is in the caller's group.
    """
    with contextlib.suppress(ProcessLookupError):
        group = os.getpgid(pid)
        for found in list(tree(pid)):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(found) == group:
                    _send(found, number)


def continue_tree(pid: int) -> None:
    """SIGCONT a process and all its descendants."""
    for found in tree(pid):
        _send(found, signal.SIGCONT)


def _send(pid: int, number: int) -> PermissionError | None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return None
    except PermissionError as error:
        return error
    return None


# --- cgroups ---------------------------------------------------------------------------------------------


def cgroups(pid: int | str = "self") -> dict[str, str]:
    """The cgroup of a process in each hierarchy, by controller; that of version 2 under the empty name.

    A path starts at the root of the reader's cgroup namespace: "/../a" is outside of it. Empty where the process
    is gone.

    Raises:
        FileNotFoundError: There is no /proc.
    """
    text = _read(f"/proc/{pid}/cgroup")
    if text is None and not os.path.exists("/proc/self"):
        raise FileNotFoundError("/proc is not mounted")
    found = {}
    for line in filter(None, os.fsdecode(text or b"").split("\n")):
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            found[name] = path.removesuffix(_DELETED)
    return found


def is_in_cgroup_namespace() -> bool:
    """Whether this process sees the cgroups from below the root of the host's hierarchy."""
    try:
        return os.stat("/proc/self/ns/cgroup").st_ino != _INITIAL_CGROUP_NAMESPACE
    except OSError:
        return False


def own_cgroup(pid: int | str = "self") -> str | None:
    """The path of a process's cgroup of version 2, as ``cgroups`` gives it; ``None`` where it has none."""
    return cgroups(pid).get("")
