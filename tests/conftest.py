"""Fixtures of all tests: the backends, what this machine must have, and that every test leaves nothing."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import hypothesis
import pytest

# Set before anything starts a process, and before NumPy starts threads, beside which a fork is not safe.
os.environ["GWSANDBOX_TEST_ID"] = uuid.uuid4().hex
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import features
from support import EMULATED, MARK, PACE, SLOW, BackendName, alarm, examples

from gwsandbox.backends.cgroup import delegation
from gwsandbox.linux import descriptors, procfs, systemd_scope
from gwsandbox.model.errors import CgroupError

# A shell without job control ignores these for what it starts in the background, and nohup SIGHUP: whatever we start
# would too. A handler is not inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

HANG_AFTER = 120 * PACE  # seconds


# Nothing is timed here, and nothing is written into the tree.
hypothesis.settings.register_profile("ours", deadline=None, database=None, max_examples=examples(100))
hypothesis.settings.load_profile("ours")


def pytest_report_header() -> list[str]:
    machine = "emulated machine" if EMULATED else "machine"
    return [f"gwsandbox: {machine}, {SLOW:.1f} times slower than a quiet one; {features.summary()}"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a feature that this machine has not, or fail where it must have it."""
    for name in features.PROBES:
        if item.get_closest_marker(name):
            features.need(name)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its two ends. Guests have it, where it is made before their manager is."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture(params=["rlimit", pytest.param("cgroup", marks=pytest.mark.cgroup2)])
def backend(request: pytest.FixtureRequest) -> BackendName:
    """Each backend that this machine has."""
    name: BackendName = request.param
    return name


@pytest.fixture(autouse=True)
def _does_not_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    with alarm(HANG_AFTER * (5 if request.node.get_closest_marker("long") else 1)):
        yield


@pytest.fixture(autouse=True)
def _leaves_nothing(_does_not_hang: None) -> Iterator[None]:
    """After every test: no process, cgroup, descriptor, thread or temporary file is left."""
    before = Surroundings()
    yield
    left = Surroundings().since(before)
    before.clear_up()
    assert not left, f"left behind: {'; '.join(left)}"


# --- what is around us -----------------------------------------------------------------------------------

_strangers: set[int] = {os.getpid()}  # processes that were looked at and are not ours


@dataclass
class Surroundings:
    """What there is of ours at this moment."""

    processes: dict[int, str] = field(default_factory=lambda: _our_processes())
    cgroups: list[str] = field(default_factory=lambda: _cgroups())
    descriptors: dict[int, str] = field(default_factory=lambda: _descriptors())
    threads: set[str] = field(default_factory=lambda: {thread.name for thread in threading.enumerate()})
    temporary: set[str] = field(default_factory=lambda: _temporary())

    def since(self, before: Surroundings) -> list[str]:
        """What was not there before, in words."""
        return [
            *(f"process {pid} ({what})" for pid, what in self.processes.items() if pid not in before.processes),
            *(f"cgroup {path}" for path in self.cgroups if path not in before.cgroups),
            *(f"descriptor {fd} ({what})" for fd, what in self.descriptors.items() if fd not in before.descriptors),
            *(f"thread {name}" for name in self.threads - before.threads),
            *(f"{name} in the folder for temporary files" for name in self.temporary - before.temporary),
        ]

    def clear_up(self) -> None:
        """Kill what came since, so that one test's leftovers are not counted against the next."""
        for pid in Surroundings().processes.keys() - self.processes.keys():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _our_processes() -> dict[int, str]:
    """Children of ours, zombies too; forks of ours, wherever they went; and what bears our mark."""
    children = [pid for pid in procfs.children(os.getpid()) if not _is_dead(pid)]
    found = dict.fromkeys(children, "a child of the tests")
    everybody = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    for pid in everybody - found.keys() - _strangers:
        if what := _ours(pid):
            found[pid] = what
        else:
            _strangers.add(pid)
    for pid in _in_our_cgroups() - found.keys() - {os.getpid()}:
        found[pid] = "in a cgroup of the tests"
    return found


def _is_dead(pid: int) -> bool:
    """Whether it has ended and nobody is to reap it: with SIGCHLD ignored it is there for a moment more."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"X"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _image(pid: int | str) -> tuple[bytes, ...]:
    """Where a process's stack and environment start: a fork has those of its parent, an exec draws new ones."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return fields[25], fields[47]


_OWN_IMAGE = _image("self")


def _ours(pid: int) -> str:
    if _image(pid) == _OWN_IMAGE:
        return "a fork of the tests"
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
    except OSError:
        return ""
    return "started by the tests" if f"{MARK}={os.environ[MARK]}".encode() in environment else ""


@functools.cache  # asking systemd takes longer than many a test
def _top() -> str:
    """Where the run groups are: what was delegated to us, or the slice of the scopes that systemd gives."""
    try:
        return delegation.find_root().path
    except CgroupError:
        return f"{delegation.MOUNT}/{systemd_scope.SLICE}"


def _in_our_cgroups() -> set[int]:
    found: set[int] = set()
    for folder, _, _ in os.walk(_top()):
        with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", encoding="ascii") as file:
            found |= set(map(int, file.read().split()))
    return found


def _cgroups() -> list[str]:
    return [*glob.glob(f"{_top()}/gwsandbox-*[0-9]"), *glob.glob(f"{_top()}/*.scope/gwsandbox-*")]


def _descriptors() -> dict[int, str]:
    found = {}
    for fd in descriptors.open_descriptors():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def _temporary() -> set[str]:
    names = os.listdir(tempfile.gettempdir())
    # Virtual machines and their images are not the package's.
    return {name for name in names if name.startswith("gwsandbox") and "vm" not in name and "corpus" not in name}
