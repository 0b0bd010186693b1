"""What memory there is and is used."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import GIB, MIB, Program

from gwsandbox import memory_usage
from gwsandbox.backends.cgroup.delegation import find_root
from gwsandbox.memory_usage import (
    bytes_to_gigibytes,
    get_available_memory_bytes,
    get_available_memory_gib,
    get_total_memory_usage_in_gib,
)


def test_units() -> None:
    assert bytes_to_gigibytes(GIB) == 1.0
    assert bytes_to_gigibytes(0) == 0.0
    assert bytes_to_gigibytes(GIB // 2) == 0.5


def test_available_memory_is_never_more_than_the_hosts() -> None:
    available = get_available_memory_bytes()
    assert 0 < available <= psutil.virtual_memory().total
    assert get_available_memory_gib() == pytest.approx(get_available_memory_bytes() / GIB, rel=0.3)


def fake(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_least_of_what_is_left_under_each_ancestor(tmp_path: Path) -> None:
    fake(
        tmp_path,
        {
            "memory.current": "1",  # the root has no memory.max
            "a/memory.max": "1000000\n",
            "a/memory.current": "900000\n",
            "a/b/memory.max": "max\n",
            "a/b/memory.current": "50\n",
            "a/b/c/memory.max": "500000\n",
            "a/b/c/memory.current": "100000\n",
        },
    )
    left = memory_usage._left(str(tmp_path), "/a/b/c", "memory.max", "memory.current")
    assert left == [400_000, 100_000]


def test_cached_files_count_as_left(tmp_path: Path) -> None:
    stat = "anon 100\ninactive_file 300000\nactive_file 200000\nslab_reclaimable 100000\n"
    fake(tmp_path, {"a/memory.max": "1000000\n", "a/memory.current": "900000\n", "a/memory.stat": stat})
    assert memory_usage._left(str(tmp_path), "/a", "memory.max", "memory.current") == [700_000]


def test_no_limit_in_version_1_is_a_huge_number(tmp_path: Path) -> None:
    fake(tmp_path, {"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "5\n"})
    assert memory_usage._left(str(tmp_path), "/", "memory.limit_in_bytes", "memory.usage_in_bytes") == []


def test_a_path_that_does_not_exist_here_limits_nothing(tmp_path: Path) -> None:
    """In a container /proc/self/cgroup may name the host's path."""
    assert memory_usage._left(str(tmp_path), "/not/here", "memory.max", "memory.current") == []


@pytest.fixture
def child() -> Iterator[int]:
    """A fork that shares 64 MiB with us, has a child of its own that shares them too, and 32 MiB of its own."""
    shared = mmap.mmap(-1, 64 * MIB)
    shared.write(b"x" * 64 * MIB)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            _ = shared[:: mmap.PAGESIZE]
            os.write(writer, b".")
            signal.pause()
        own = bytearray(b"y") * (32 * MIB)
        _ = shared[:: mmap.PAGESIZE]
        os.write(writer, own[:1])
        signal.pause()
    while len(os.read(reader, 1)) < 1:
        pass
    os.read(reader, 1)
    yield pid
    for process in [*psutil.Process(pid).children(), psutil.Process(pid)]:
        process.kill()
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)


def test_shared_pages_are_not_counted_twice(child: int) -> None:
    used = get_total_memory_usage_in_gib(child) * 1024
    rss = sum(process.memory_info().rss for process in [psutil.Process(child), *psutil.Process(child).children()])
    assert used >= 32
    assert used < rss / MIB - 50


@pytest.mark.parametrize("pid", [None, 2**22 + 1])
def test_none_and_who_is_gone_use_nothing(pid: int | None) -> None:
    assert get_total_memory_usage_in_gib(pid) == 0.0


@pytest.mark.cgroup2
@pytest.mark.delegated
def test_available_memory_in_a_cgroup_with_a_limit() -> None:
    group = Path(find_root().path, "limited")
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(64 * MIB))
        source = """
import sys
from gwsandbox.memory_usage import get_available_memory_bytes
sys.stdin.readline()
print(get_available_memory_bytes(), flush=True)
"""
        with Program(source) as program:
            (group / "cgroup.procs").write_text(str(program.pid))
            program.say("start_event")
            (available,) = program.numbers()
            assert program.wait() == 0
        assert 30 * MIB < available <= 64 * MIB
    finally:
        group.rmdir()
