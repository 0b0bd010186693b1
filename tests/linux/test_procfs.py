"""Processes and their memory, from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import features
import pytest
from support import MIB, SLOW, Program, Watched, times

from gwsandbox.linux import procfs

GONE = 2**22 + 1
SOURCES = str(Path(procfs.__file__).parents[2])
DEPTH = times(300, at_least=50)


CHAIN = r"""
import os, signal, sys
for _ in range(int(sys.argv[1]) - 1):
    if os.fork():
        break
os.write(1, b"%d\n" % os.getpid())
while True:
    signal.pause()
"""


@pytest.fixture
def chain() -> Iterator[Program]:
    """A process with a child, with a child, and so on."""
    with Program(CHAIN, str(DEPTH)) as program:
        yield program
        procfs.kill_tree(program.pid)
        assert program.process.stdout is not None
        program.process.stdout.read()  # up to its end: all of them hold it


def test_a_deep_tree(chain: Program) -> None:
    pids = {int(chain.line()) for _ in range(DEPTH)}
    tree = list(procfs.tree(chain.pid))
    assert tree[0] == chain.pid
    assert len(tree) == DEPTH
    assert set(tree) == pids


def test_killing_a_deep_tree(chain: Program) -> None:
    pids = {int(chain.line()) for _ in range(DEPTH)}
    with Watched(*pids) as tree:
        procfs.kill_tree(chain.pid)
        assert not tree.living_after(60 * SLOW)
    assert chain.process.stdout is not None
    assert chain.process.stdout.read() == b""


def test_who_is_gone_has_and_is_nothing() -> None:
    assert procfs.children(GONE) == []
    assert list(procfs.tree(GONE)) == [GONE]
    assert procfs.resident(GONE) == 0
    assert procfs.proportional(GONE) == 0
    assert procfs.cpu_seconds(GONE) == 0.0
    assert procfs.look(GONE) is None
    assert procfs.start_time(GONE) == 0
    assert procfs.is_zombie(GONE)
    procfs.kill_tree(GONE)


def test_who_may_not_be_looked_at_is_not_gone() -> None:
    """As an ordinary user, under a /proc that shows nobody else's processes."""
    features.need("root")
    features.need("mount_namespace")
    source = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from gwsandbox.linux import procfs\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for func in (procfs.look, procfs.resident, procfs.cpu_seconds, procfs.children, procfs.cgroups):\n"
        "    try: func(1)\n"
        "    except PermissionError: print(func.__name__)\n"
        "print(procfs.is_zombie(1))\n"
    )
    hidden = 'mount -t proc -o hidepid=1 proc /proc && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", hidden, "sh", sys.executable, "-c", source, SOURCES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["look", "resident", "cpu_seconds", "children", "cgroups", "False"], done.stderr


def test_the_cgroups_of_a_process() -> None:
    found = procfs.cgroups()
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    assert [f"{controllers}:{path}" for controllers, path in found.items()] == [
        f"{name}:{line.split(':', 2)[2]}" for line in lines for name in line.split(":")[1].split(",")
    ]
    assert procfs.cgroups(os.getpid()) == found
    assert procfs.own_cgroup() == found.get("")
    assert procfs.cgroups(GONE) == {}
    assert procfs.own_cgroup(GONE) is None


def test_a_zombie_is_one() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert procfs.is_zombie(pid)
    assert not procfs.is_zombie(os.getpid())
    os.waitpid(pid, 0)


def test_memory_and_cpu_time_of_this_process() -> None:
    before = procfs.proportional(os.getpid()), procfs.resident(os.getpid())
    own = b"x" * (64 * MIB)
    after = procfs.proportional(os.getpid()), procfs.resident(os.getpid())
    assert len(own) == 64 * MIB
    for less, more in zip(before, after, strict=True):
        assert 60 * MIB < more - less < 70 * MIB
    assert procfs.cpu_seconds(os.getpid()) == pytest.approx(sum(os.times()[:4]), abs=0.1)
