"""Tasks that take more memory than they may, in every way that we know."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import MIB, PROGRAM_BASE, BackendName, run_all, run_one, run_open, run_task, write_program

from gwsandbox import Command, Limits, Outcome, Task, TaskResult
from gwsandbox.backends.cgroup.delegation import find_root

LIMIT = 24 * MIB
KERNEL = tuple(map(int, os.uname().release.split(".")[:2]))
# Before Linux 6.2 a process adds up its own faults, 64 of them, before ru_maxrss changes.
PEAK_ERROR = 0 if KERNEL >= (5, 19) else MIB // 4
PEAK_SOURCE = "memory.peak" if KERNEL >= (5, 19) else "memory.max was reached (no memory.peak before Linux 5.19)"


def hog(size: int) -> int:
    """Touch ``size`` bytes of anonymous memory."""
    return len(bytearray(size))


def hog_fresh_pages(size: int) -> None:
    """The same, none of it from what the test's process had freed: a fork has that mapped already."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
        for start in range(0, size, mmap.PAGESIZE):
            fresh[start] = 1


def hog_for_ever() -> None:
    held = []
    while True:
        held.append(b"x" * MIB)


def assert_out_of_memory(result: TaskResult) -> None:
    assert result.outcome is Outcome.OUT_OF_MEMORY, result
    assert result.out_of_memory
    assert not result.timed_out
    assert isinstance(result.exception, MemoryError)
    assert "memory limit of 24 MiB" in result.detail


def assert_killed_at_the_limit(result: TaskResult) -> None:
    assert_out_of_memory(result)
    assert result.exit_code == -signal.SIGKILL
    assert result.usage.memory_peak_bytes is not None
    assert LIMIT * 0.99 <= result.usage.memory_peak_bytes <= LIMIT
    assert result.usage.sources["memory_peak_bytes"] == PEAK_SOURCE
    assert result.usage.oom_kills


@pytest.mark.cgroup2
def test_anonymous_memory_under_the_cgroup() -> None:
    assert_killed_at_the_limit(run_one("cgroup", hog_for_ever, memory=LIMIT))


def test_anonymous_memory_under_rlimit() -> None:
    result = run_one("rlimit", hog_for_ever, memory=LIMIT)
    assert_out_of_memory(result)
    assert result.exit_code in {1, -signal.SIGKILL}  # it raised MemoryError, or our look came first
    assert result.enforcement["memory"] == "RLIMIT_DATA + sampling"
    assert "memory" in result.enforcement.degraded


def shared_between_processes() -> None:
    """No process passes its own limit on data: only the sum over the tree does."""
    shared = mmap.mmap(-1, 4 * LIMIT)
    for start in range(0, len(shared), LIMIT // 4):
        if os.fork() == 0:
            shared[start : start + LIMIT // 4] = b"x" * (LIMIT // 4)
            signal.pause()
    signal.pause()


def test_memory_of_a_tree_of_processes(backend: BackendName) -> None:
    result = run_one(backend, shared_between_processes, memory=LIMIT)
    assert_out_of_memory(result)
    assert result.exit_code == -signal.SIGKILL


@pytest.mark.cgroup2
def test_a_neighbour_is_unharmed() -> None:
    hogging = Task(hog_for_ever, limits=Limits(memory=LIMIT))
    results = run_all("cgroup", [hogging, *(Task(pow, (2, n)) for n in range(6))])
    for result in results:
        if result.task is hogging:
            assert_killed_at_the_limit(result)
        else:
            assert result.success


def child_hogs() -> str:
    pid = os.fork()
    if pid == 0:
        hog_for_ever()
    os.waitpid(pid, 0)
    return "the main process lived on"


@pytest.mark.cgroup2
def test_a_descendant_takes_the_whole_guest_with_it() -> None:
    assert_killed_at_the_limit(run_one("cgroup", child_hogs, memory=LIMIT))


def exempt_while_child_hogs() -> str:
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("-1000")
    pid = os.fork()
    if pid == 0:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("0")
        hog_for_ever()
    os.waitpid(pid, 0)
    return "the main process lived on"


@pytest.mark.cgroup2
@pytest.mark.root
def test_a_main_process_that_exempted_itself_does_not_hide_the_kill() -> None:
    result = run_open("cgroup", exempt_while_child_hogs, memory=LIMIT)
    assert_out_of_memory(result)
    assert result.exit_code == 0
    assert "descendant" in result.detail


def into_file_system(folder: str) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        while True:
            file.write(b"x" * MIB)
            file.flush()


def into_memfd() -> None:
    fd = os.memfd_create("hog")
    while True:
        os.write(fd, b"x" * MIB)


def into_shared_mapping() -> None:
    shared = mmap.mmap(-1, 4 * LIMIT)
    for start in range(0, len(shared), mmap.PAGESIZE):
        shared[start] = 1
    signal.pause()


def into_pipes() -> None:
    held = []
    while True:
        reader, writer = os.pipe2(os.O_NONBLOCK)
        held.append((reader, writer))
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 65536)


@pytest.mark.cgroup2
@pytest.mark.parametrize(
    "hide",
    [lambda: into_file_system("/dev/shm"), into_memfd, into_shared_mapping, into_pipes],
    ids=["tmpfs", "memfd", "shared mapping", "pipe buffers"],
)
def test_memory_that_no_process_has_mapped_for_itself(hide: Callable[[], None]) -> None:
    assert_killed_at_the_limit(run_one("cgroup", hide, memory=LIMIT, open_files=1 << 16))


def into_sockets() -> int:
    """Fill loopback connections that nobody reads; their buffers are bounded by the kernel's own limits too."""
    held: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))
    for _ in range(40):
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
        held += [sender, receiver]
        sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sender.send(b"x" * 65536)
    return len(held)


@pytest.mark.cgroup2
def test_socket_buffers_count_too() -> None:
    result = run_one("cgroup", into_sockets, memory=LIMIT)
    assert result.outcome in {Outcome.OUT_OF_MEMORY, Outcome.SUCCEEDED}  # the kernel may hold TCP back instead
    assert result.usage.memory_peak_bytes is not None
    # What the network has received already it charges even past the limit (mem_cgroup_charge_skmem).
    assert LIMIT // 4 < result.usage.memory_peak_bytes <= LIMIT * 1.02


@pytest.fixture
def large_file() -> Iterator[Path]:
    """A file of four times the limit, on a disk: /tmp may be a tmpfs, whose pages are no cache."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="gwsandbox-test-") as folder:
        path = Path(folder) / "large"
        with path.open("wb") as file:
            file.truncate(4 * LIMIT)
        yield path


def read_all(path: Path) -> int:
    size = 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(MIB):
            size += len(data)
    return size


def map_all(path: Path) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return sum(mapped[start] == 0 for start in range(0, len(mapped), mmap.PAGESIZE)) * mmap.PAGESIZE


@pytest.mark.cgroup2
@pytest.mark.parametrize("use", [read_all, map_all])
def test_page_cache_is_reclaimed_and_no_reason_to_be_killed(use: Callable[[Path], int], large_file: Path) -> None:
    result = run_one("cgroup", use, large_file, memory=LIMIT)
    assert result.outcome is Outcome.SUCCEEDED, result
    assert result.result == 4 * LIMIT
    assert result.usage.oom_kills == 0


def write_array(path: Path, bss: int) -> None:
    """A static x86_64 program that writes to each page of an array of ``bss`` bytes, and exits with 0."""
    code = (
        b"\x48\xbf" + struct.pack("<Q", PROGRAM_BASE + 0x10000)  # mov rdi, array
        + b"\x48\xb9" + struct.pack("<Q", bss // 4096 - 32)  # mov rcx, pages
        + b"\xc6\x07\x01"  # mov byte [rdi], 1
        + b"\x48\x81\xc7\x00\x10\x00\x00"  # add rdi, 4096
        + b"\x48\xff\xc9\x75\xf1"  # dec rcx; jnz to the mov
        + b"\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05"  # exit(0)
    )  # fmt: skip
    write_program(path, code, bss)


@pytest.mark.cgroup2
@pytest.mark.skipif(platform.machine() != "x86_64", reason="its machine code is that of x86_64")
@pytest.mark.parametrize(("bss", "outcome"), [(MIB, Outcome.SUCCEEDED), (8 * LIMIT, Outcome.OUT_OF_MEMORY)])
def test_a_static_array(bss: int, outcome: Outcome, tmp_path: Path) -> None:
    program = tmp_path / "static"
    write_array(program, bss)
    result = run_task("cgroup", Command([program], limits=Limits(memory=LIMIT)))
    assert result.outcome is outcome, result


@pytest.mark.cgroup2
def test_a_limit_smaller_than_the_interpreter_needs_says_so() -> None:
    result = run_one("cgroup", pow, 2, 3, memory=128 * 1024)
    assert result.outcome is Outcome.OUT_OF_MEMORY, result
    assert "memory limit of 128 KiB reached" in result.detail


def oom_in_a_cgroup_of_its_own() -> str:
    with open("/proc/self/cgroup", encoding="ascii") as file:
        leaf = "/sys/fs/cgroup" + file.read().strip()[3:]
    for name in ("main", "inner"):
        os.mkdir(f"{leaf}/{name}")
    for path, value in [
        ("main/cgroup.procs", "0"),
        ("cgroup.subtree_control", "+memory"),
        ("inner/memory.max", str(8 * MIB)),
        ("inner/memory.swap.max", "0"),
    ]:
        with contextlib.suppress(FileNotFoundError), open(f"{leaf}/{path}", "w", encoding="ascii") as file:
            file.write(value)
    pid = os.fork()
    if pid == 0:
        with open(f"{leaf}/inner/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")
        hog_for_ever()
    _, status = os.waitpid(pid, 0)
    return f"child ended by {-os.waitstatus_to_exitcode(status)}"


@pytest.mark.cgroup2
def test_an_oom_kill_in_a_cgroup_that_the_task_made_is_not_the_tasks() -> None:
    result = run_open("cgroup", oom_in_a_cgroup_of_its_own, memory=4 * LIMIT)
    assert result.outcome is Outcome.SUCCEEDED, result
    assert result.result == "child ended by 9"
    assert result.usage.oom_kills == 1
    assert not result.out_of_memory


_UNDER_AN_ANCESTOR = """
import sys
sys.path.insert(0, sys.argv[1])
from test_memory import hog_for_ever
from gwsandbox import Limits, run
input()
result = run(hog_for_ever, limits=Limits(memory="1GiB"), backend="cgroup")
print(result.outcome.name, result.out_of_memory, result.exit_code, result.detail)
"""


@pytest.mark.cgroup2
@pytest.mark.delegated
def test_an_ancestors_limit_is_not_the_tasks() -> None:
    ancestor = f"{find_root().path}/ancestor"
    os.mkdir(ancestor)
    try:
        Path(ancestor, "memory.max").write_text(str(3 * LIMIT), encoding="ascii")
        os.setxattr(ancestor, "user.delegate", b"1")  # as systemd marks what it delegates
        folders = [str(Path(__file__).parent), *filter(None, sys.path)]
        with subprocess.Popen(
            [sys.executable, "-c", _UNDER_AN_ANCESTOR, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        ) as driver:
            Path(ancestor, "cgroup.procs").write_text(str(driver.pid), encoding="ascii")
            said, _ = driver.communicate("\n")
        assert said.startswith("KILLED False -9 "), said
        assert "ancestor" in said
    finally:
        for folder in (f"{ancestor}/supervisor", ancestor):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(folder)


@pytest.mark.cgroup2
def test_each_peak_is_its_own() -> None:
    tasks = [Task(hog_fresh_pages, (size * MIB,)) for size in range(1, 61)]
    for result in run_all("cgroup", tasks, workers=60, limits=Limits(memory="96MiB")):
        assert result.success
        assert result.usage.memory_peak_bytes is not None
        size = result.task.args[0]  # type: ignore[union-attr]
        assert size - PEAK_ERROR <= result.usage.memory_peak_bytes <= size + 6 * MIB, result.task


# --- swap ------------------------------------------------------------------------------------------------


@pytest.mark.cgroup2
@pytest.mark.swap
def test_swap_is_no_way_past_the_limit() -> None:
    result = run_one("cgroup", hog_for_ever, memory=LIMIT)
    assert_killed_at_the_limit(result)
    assert result.usage.swap_peak_bytes in {0, None}  # None: before Linux 6.5 there is no file for it


def hold_noise(size: int) -> int:
    """Touch ``size`` bytes that cannot be swapped out for nothing, as pages of zeros can since Linux 6.12."""
    return len(random.Random(1).randbytes(4096) * (size // 4096))


@pytest.mark.cgroup2
@pytest.mark.swap
def test_swap_that_is_allowed_is_used_up_to_its_own_limit() -> None:
    result = run_one("cgroup", hold_noise, 2 * LIMIT, memory=LIMIT, swap=2 * LIMIT)
    assert result.success, result
    assert result.usage.memory_peak_bytes is not None
    assert result.usage.memory_peak_bytes <= LIMIT
    if result.usage.swap_peak_bytes is not None:
        assert LIMIT / 2 < result.usage.swap_peak_bytes <= 2 * LIMIT
    assert_killed_at_the_limit(run_one("cgroup", hog_for_ever, memory=LIMIT, swap=2 * LIMIT))
