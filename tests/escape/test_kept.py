"""What a program that works does, which standard hardening leaves to it, and that ``off`` is as if there were none."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import multiprocessing
import os
import pwd
import resource
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path

import pytest
from support import PACE, BackendName, run_all, run_task, sleep_for_ever

from gwsandbox import Command, Hardening, Limits, Outcome, ProcessManager, Task

pytestmark = pytest.mark.stock_kernel  # a guest of User-mode Linux is not kept from its kernel

libc = ctypes.CDLL(None, use_errno=True)
PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_DETACH = 0, 16, 17


def start_threads_and_programs() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]
    assert subprocess.run(["/bin/echo", "x"], capture_output=True, check=True).stdout == b"x\n"
    pid = os.posix_spawn("/bin/true", ["true"], os.environ, setsid=True)
    assert os.waitpid(pid, 0)[1] == 0


def share_work_with_processes() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    block = shared_memory.SharedMemory(create=True, size=100)
    block.close()
    block.unlink()


def signal_its_own() -> None:
    with subprocess.Popen(["/bin/sleep", "100"]) as program:
        program.send_signal(signal.SIGSTOP)
        os.waitpid(program.pid, os.WUNTRACED)
        program.kill()
    got: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    assert got == [signal.SIGUSR1] * 2
    os.killpg(0, 0)


def trace_its_own() -> None:
    """As a debugger does, and one that is attached to a child that runs."""
    pid = os.fork()
    if pid == 0:
        libc.ptrace(PTRACE_TRACEME, 0, 0, 0)
        os.execv("/bin/true", ["true"])
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status)
    with open(f"/proc/{pid}/mem", "rb"):
        pass
    assert libc.ptrace(PTRACE_DETACH, pid, 0, 0) == 0
    os.waitpid(pid, 0)


def talk() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/socket")
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{folder}/socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("")
        server.listen()
        client.connect(server.getsockname())
    left, right = socket.socketpair()
    left.close()
    right.close()
    with contextlib.suppress(socket.gaierror):
        socket.getaddrinfo("localhost", 80)


def work_with_files() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "a").mkdir()
        (base / "b").mkdir()
        (base / "a" / "file").write_text("text")
        os.rename(base / "a" / "file", base / "b" / "file")
        os.link(base / "b" / "file", base / "a" / "link")
        os.symlink("link", base / "a" / "symlink")
        os.mkfifo(base / "fifo")
        os.truncate(base / "b" / "file", 1)
        os.chmod(base / "b" / "file", 0o600)
        os.utime(base / "b" / "file", (1, 1))
        with open(base / "b" / "file", "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            mmap.mmap(file.fileno(), 1).close()
    with open("/dev/null", "w") as null, open("/dev/urandom", "rb") as random:
        null.write("x")
        random.read(1)
    with open("/dev/stderr", "w") as stderr:
        stderr.write("")
    os.close(os.memfd_create("ours"))
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def look_at_itself() -> None:
    for name in ("status", "maps", "environ", "smaps", "cmdline", "stat", "limits", "mountinfo", "cgroup"):
        with open(f"/proc/self/{name}", "rb") as file:
            file.read()
    os.listdir("/proc/self/fd")
    os.listdir("/sys/fs")
    with open("/proc/meminfo", encoding="ascii") as file:
        assert "MemTotal" in file.read()
    with open("/proc/self/mem", "rb"):
        pass
    os.getpriority(os.PRIO_PROCESS, 0)


def change_itself() -> None:
    os.nice(1)
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 100), hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert libc.unshare(0x200 | 0x400) == 0  # CLONE_FS, CLONE_FILES
    os.chdir("/")
    os.umask(0o22)
    with open("/proc/self/comm", encoding="ascii") as file:
        file.read()


KEPT: list[Callable[[], None]] = [
    start_threads_and_programs,
    share_work_with_processes,
    signal_its_own,
    trace_its_own,
    talk,
    work_with_files,
    look_at_itself,
    change_itself,
]


@pytest.mark.parametrize("hardening", [Hardening.off(), Hardening.standard()], ids=["off", "standard"])
@pytest.mark.parametrize("deed", KEPT)
def test_a_program_that_works_can(backend: BackendName, deed: Callable[[], None], hardening: Hardening) -> None:
    result = run_task(backend, Task(deed), hardening=hardening)
    assert result.success, result


def be_root() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_text("text")
        os.chown(path, 12345, 12345)
        path.chmod(0)
        path.read_text()
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setgid(12345)
            os.setuid(12345)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        pid = os.fork()
        if pid == 0:
            os.chroot(folder)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.root
def test_root_can_be_root(backend: BackendName) -> None:
    result = run_task(backend, Task(be_root))
    assert result.success, result


def status_of_itself() -> dict[str, str]:
    with open("/proc/self/status", encoding="ascii") as file:
        lines = [line.split(":", 1) for line in file]
    watched = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters")
    return {name: value.strip() for name, value in lines if name in watched}


def namespaces() -> dict[str, str]:
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}


@pytest.mark.parametrize("command", [False, True])
def test_off_takes_nothing(backend: BackendName, command: bool) -> None:
    if command:
        task = Command(["/bin/cat", "/proc/self/status"])
        result = run_task(backend, task, hardening=Hardening.off())
        lines = [line.split(":", 1) for line in result.result.stdout.decode().splitlines()]
        found = {name: value.strip() for name, value in lines if name in status_of_itself()}
    else:
        result = run_task(backend, Task(status_of_itself), hardening=Hardening.off())
        found = result.result
        assert run_task(backend, Task(namespaces), hardening=Hardening.off()).result == namespaces()
    assert found == status_of_itself()
    assert result.enforcement.hardening == {}


def test_standard_is_the_default_and_says_what_holds(backend: BackendName) -> None:
    result = run_task(backend, Task(status_of_itself))
    assert (result.result["NoNewPrivs"], result.result["Seccomp"]) == ("1", "2")
    held = result.enforcement.hardening
    assert held.keys() == Hardening.standard().mechanisms() | {"results"}
    assert all(value == "enforced" or value.startswith(("partly: ", "not: ")) for value in held.values()), held
    assert held["results"].startswith("not: ")
    assert held["no_new_privs"] == held["own_processes"] == held["capabilities"] == "enforced"


def test_a_guest_that_never_started_has_no_hardening(backend: BackendName) -> None:
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_task(Task(abs, (1,)))
        manager.cancel()
    assert manager.task_results[0].enforcement.hardening == {}


def descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the folder that lists them
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def test_no_guest_has_the_ruleset(backend: BackendName) -> None:
    """A process that has it can change what later guests may do."""
    found = run_task(backend, Task(descriptors)).result
    assert not [name for name in found if "landlock" in name], found
    listed = run_task(backend, Command(["/bin/sh", "-c", "readlink /proc/self/fd/*"])).result
    assert b"landlock" not in listed.stdout


@pytest.mark.parametrize("require", [{"signals"}, {"no_new_privs", "system_calls"}])
def test_what_is_required_and_holds_is_run(backend: BackendName, require: set[str]) -> None:
    result = run_task(backend, Task(abs, (-1,)), hardening=Hardening.standard(require=require))
    for name in require:
        if result.enforcement.hardening[name] != "enforced":
            pytest.skip(result.enforcement.hardening[name])
    assert result.result == 1


def test_an_environment_of_some_names(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWSANDBOX_SECRET", "x")
    hardening = Hardening.standard(environment=("PATH",))
    result = run_task(backend, Task(environment), hardening=hardening)
    assert result.result == ["PATH"]
    assert result.enforcement.hardening["environment"] == "enforced"
    assert "GWSANDBOX_SECRET" in run_task(backend, Task(environment)).result


def environment() -> list[str]:
    return sorted(os.environ)


def open_a_socket(family: int) -> None:
    socket.socket(family).close()


def test_no_network(backend: BackendName) -> None:
    tasks = [Task(open_a_socket, (family,)) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)]
    results = run_all(backend, tasks, workers=1, hardening=Hardening.standard(network="none"))
    assert [result.success for result in results] == [False, False, True]
    assert results[0].enforcement.hardening["network"] == "enforced"
    results = run_all(backend, tasks, workers=1, hardening=Hardening.off(network="none"))
    assert [result.success for result in results] == [False, False, True]


def ids() -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return os.getresuid(), os.getresgid(), os.getppid()


@pytest.mark.root
def test_another_user(backend: BackendName) -> None:
    hardening = Hardening.standard(user="nobody")
    result = run_task(backend, Task(ids), hardening=hardening)
    entry = pwd.getpwnam("nobody")
    assert result.result[:2] == ((entry.pw_uid,) * 3, (entry.pw_gid,) * 3), result
    assert result.enforcement.hardening["user"] == "enforced"
    assert run_task(backend, Command(["id", "-u"]), hardening=hardening).result.stdout == f"{entry.pw_uid}\n".encode()
    with pytest.raises(ValueError, match="there is no such user"):
        run_task(backend, Task(ids), hardening=Hardening.standard(user="no-such-user"))


@pytest.mark.root
def test_a_guest_of_another_user_dies_with_the_run(backend: BackendName) -> None:
    """A change of the user takes back what ends it with its parent; its deadline comes from outside all the same."""
    result = run_task(
        backend,
        Task(sleep_for_ever, limits=Limits(wall_seconds=0.5 * PACE)),
        hardening=Hardening.standard(user="nobody"),
    )
    assert result.outcome is Outcome.TIMED_OUT, result


def reach_itself() -> list[tuple[int, str]]:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
    return socket.if_nameindex()


def reach_others() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("192.0.2.1", 9))


@pytest.mark.root
def test_a_network_that_leads_nowhere(backend: BackendName) -> None:
    tasks = [Task(reach_itself), Task(reach_others)]
    inside, outside = run_all(backend, tasks, workers=1, hardening=Hardening.standard(network="loopback"))
    assert inside.result == [(1, "lo")], inside
    assert isinstance(outside.exception, OSError), outside
    assert inside.enforcement.hardening["network"] == "enforced"
