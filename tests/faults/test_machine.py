"""What administrators, systemd and the kernel do to a run from outside: the verdict names it, and the run goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import MIB, PACE, run_all, sleep_for_ever, times

from gwsandbox import Limits, Outcome, ProcessManager, SandboxError, Task, TaskResult
from gwsandbox.backends.cgroup import run_group
from gwsandbox.backends.cgroup.backend import CgroupBackend
from gwsandbox.backends.cgroup.delegation import MOUNT, find_root
from gwsandbox.linux import procfs

pytestmark = pytest.mark.cgroup2

HANG_AFTER = 60 * PACE
WALL = Limits(wall_seconds=1 * PACE)


@pytest.fixture
def begun() -> Iterator[tuple[int, int]]:
    """A pipe by which a task says that it has begun."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def begin_and_sleep(writer: int) -> None:
    os.write(writer, b"x")
    sleep_for_ever()


def group_of(manager: ProcessManager) -> str:
    """Start the run; the path of its cgroup."""
    manager._feed()
    assert manager._session is not None
    assert manager._session._group
    return manager._session._group


def put(path: str, value: str) -> None:
    Path(path).write_text(value, encoding="ascii")


def leaves(group: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [entry.path for entry in os.scandir(group) if entry.is_dir()]
    return []


def kill_and_remove(leaf: str) -> None:
    """As an administrator does who clears up."""
    while True:
        try:
            put(f"{leaf}/cgroup.kill", "1")
            os.rmdir(leaf)
        except FileNotFoundError:
            return
        except OSError:
            os.sched_yield()
        else:
            return


def outcomes(results: list[TaskResult]) -> Counter[Outcome]:
    return Counter(result.outcome for result in results)


# --- groups that others remove, freeze and limit -----------------------------------------------------------


def test_a_leaf_that_is_killed_and_removed_costs_its_own_task(begun: tuple[int, int]) -> None:
    reader, writer = begun
    with ProcessManager(1, backend="cgroup") as manager:
        manager.queue_task(Task(begin_and_sleep, (writer,)))
        group = group_of(manager)
        os.read(reader, 1)
        kill_and_remove(f"{group}/task-1")
        manager.queue_tasks(Task(abs, (-1,)) for _ in range(3))
        killed, *others = list(manager.as_completed())
    assert killed.outcome is Outcome.KILLED
    assert killed.detail == "ended by SIGKILL, sent by itself or from outside and not by gwsandbox"
    assert outcomes(others) == {Outcome.SUCCEEDED: 3}


def test_a_run_group_that_is_removed_fails_what_is_left(begun: tuple[int, int]) -> None:
    reader, writer = begun
    with ProcessManager(1, backend="cgroup") as manager:
        manager.queue_task(Task(begin_and_sleep, (writer,)))
        group = group_of(manager)
        os.read(reader, 1)
        manager.queue_tasks(Task(abs, (-1,)) for _ in range(5))
        while os.path.exists(group):
            for leaf in leaves(group):
                kill_and_remove(leaf)
            with contextlib.suppress(OSError):
                os.rmdir(group)
        results = list(manager.as_completed())
    assert len(results) == 6
    failed = [result.exception for result in results if result.outcome is Outcome.SANDBOX_ERROR]
    assert failed
    assert {(error.step, error.errno) for error in failed if isinstance(error, SandboxError)} == {("open leaf", 2)}
    assert outcomes(results).keys() <= {Outcome.KILLED, Outcome.SANDBOX_ERROR}


def test_a_frozen_tree_holds_its_deadlines_and_goes_on_when_it_thaws(begun: tuple[int, int]) -> None:
    reader, writer = begun
    with ProcessManager(1, backend="cgroup") as manager:
        manager.queue_task(Task(begin_and_sleep, (writer,), limits=WALL))
        group = group_of(manager)
        os.read(reader, 1)
        put(f"{group}/cgroup.freeze", "1")
        manager.queue_task(Task(abs, (-1,), limits=WALL))
        frozen = list(manager.as_completed())
        manager.queue_task(Task(abs, (-1,)))
        manager._feed()
        put(f"{group_of(manager)}/cgroup.freeze", "0")
        thawed = list(manager.as_completed())
    assert outcomes(frozen) == {Outcome.TIMED_OUT: 2}
    assert outcomes(thawed) == {Outcome.SUCCEEDED: 1}


def test_guests_that_are_killed_while_they_are_born(begun: tuple[int, int]) -> None:
    """Each leaf is killed as soon as it is seen: before, while and after a guest is cloned into it."""
    _, writer = begun
    count = times(200, at_least=40)
    with ProcessManager(4, backend="cgroup") as manager:
        manager.queue_task(Task(abs, (-1,)))
        group = group_of(manager)
        manager.queue_tasks(Task(abs, (-1,)) for _ in range(count))
        killer = os.fork()
        if killer == 0:
            os.close(writer)
            kill_all_leaves(group)
        results = list(manager.as_completed())
        os.kill(killer, signal.SIGKILL)
        os.waitpid(killer, 0)
    assert len(results) == count + 1
    assert outcomes(results).keys() <= {Outcome.KILLED, Outcome.SUCCEEDED}, Counter(one.detail for one in results)
    assert outcomes(results)[Outcome.KILLED]


def kill_all_leaves(group: str) -> None:
    while True:
        for leaf in leaves(group):
            with contextlib.suppress(OSError):
                put(f"{leaf}/cgroup.kill", "1")


@pytest.mark.delegated
def test_what_a_dead_run_left_is_swept_though_nobody_reaps_its_owner() -> None:
    """As in a container whose first process does not."""
    owner = os.fork()
    if owner == 0:
        signal.pause()
    path = f"{find_root().path}/gwsandbox-{owner}-{procfs.start_time(owner)}-0"
    os.mkdir(path)
    assert run_group.leftovers(os.path.dirname(path)) == []
    os.kill(owner, signal.SIGKILL)
    os.waitid(os.P_PID, owner, os.WEXITED | os.WNOWAIT)
    assert run_group.sweep(os.path.dirname(path)) == [path]
    os.waitpid(owner, 0)


# --- systemd ---------------------------------------------------------------------------------------------

UNIT = f"gwsandboxtest-limited-{os.getpid()}.service"
HOLDS = """
import json, os, signal
from gwsandbox import ProcessManager, Task

def hold(writer):
    held = b"x" * (300 << 20)
    os.write(writer, b"x")
    signal.pause()

reader, writer = os.pipe()
with ProcessManager(1, backend="cgroup") as manager:
    manager.queue_task(Task(hold, (writer,)))
    manager._feed()
    os.read(reader, 1)
    print("holds", flush=True)
    (held,) = manager.as_completed()
    manager.queue_task(Task(abs, (-1,)))
(after,) = manager.task_results
print(json.dumps([held.outcome.name, held.detail, after.outcome.name]), flush=True)
"""


@pytest.mark.vm
def test_a_limit_that_systemd_lowers_above_a_run_is_no_limit_of_the_task() -> None:
    path = os.pathsep.join(filter(None, sys.path))
    words = ["systemd-run", "--quiet", "--collect", "--pipe", f"--unit={UNIT}", f"--setenv=PYTHONPATH={path}"]
    words += ["-p", "Delegate=yes", "-p", "MemorySwapMax=0", "-p", f"RuntimeMaxSec={HANG_AFTER}"]
    with subprocess.Popen([*words, sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "holds\n"
        subprocess.run(["systemctl", "set-property", "--runtime", UNIT, "MemoryMax=150M"], check=True)
        outcome, detail, after = json.loads(program.stdout.readline())
        assert program.wait(HANG_AFTER) == 0
    assert (outcome, after) == ("KILLED", "SUCCEEDED")
    assert detail.startswith("killed by the OOM killer, and not for this task's own limit: an ancestor cgroup's")


def in_a_scope(manager: ProcessManager) -> str:
    """Let a run that has not begun be in a scope of systemd's; the name of the scope, once it has."""
    manager._parameters.backend = CgroupBackend()
    return os.path.basename(os.path.dirname(group_of(manager)))


@pytest.mark.vm
def test_a_scope_that_systemd_stops_cancels_the_run(begun: tuple[int, int]) -> None:
    reader, writer = begun
    with ProcessManager(1, backend="cgroup") as manager:
        manager.queue_task(Task(begin_and_sleep, (writer,)))
        manager.queue_tasks(Task(abs, (number,)) for number in range(3))
        scope = in_a_scope(manager)
        os.read(reader, 1)
        subprocess.run(["systemctl", "stop", "--no-block", scope], check=True)
    first, *rest = manager.task_results
    assert first.outcome in {Outcome.KILLED, Outcome.CANCELLED}  # systemd's signal goes to the guest too
    assert {one.outcome for one in rest} <= {Outcome.CANCELLED}


@pytest.mark.vm
def test_a_scope_that_systemd_kills_ends_the_run_and_says_so(begun: tuple[int, int]) -> None:
    reader, writer = begun
    with ProcessManager(1, backend="cgroup") as manager:
        manager.queue_task(Task(begin_and_sleep, (writer,)))
        manager.queue_task(Task(abs, (-1,)))
        scope = in_a_scope(manager)
        os.read(reader, 1)
        subprocess.run(["systemctl", "kill", "--signal=SIGKILL", scope], check=True)
    for result in manager.task_results:
        assert result.outcome is Outcome.SANDBOX_ERROR
        assert "the supervisor process ended before its time" in result.detail
    assert len(manager.task_results) == 2
    assert scope not in os.listdir(f"{MOUNT}/system.slice")


# --- the kernel ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def setting(path: str, value: str) -> Iterator[None]:
    """A setting of the kernel, which is put back."""
    before = Path(path).read_text(encoding="ascii")
    put(path, value)
    try:
        yield
    finally:
        put(path, before)


@pytest.mark.vm
@pytest.mark.thorough
def test_process_numbers_that_come_round_again() -> None:
    """Each number stands for several guests, one after the other."""
    with setting("/proc/sys/kernel/pid_max", "400"):  # of which the first 300 are given once only, after the boot
        results = run_all("cgroup", [Task(os.getpid)] * 200, workers=3)
    pids = {result.result for result in results}
    assert outcomes(results) == {Outcome.SUCCEEDED: len(results)}
    assert len(pids) < len(results)


@pytest.mark.vm
@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_set_moves_no_deadline(hours: int, begun: tuple[int, int]) -> None:
    reader, writer = begun
    with ProcessManager(2, backend="cgroup") as manager, shifted_clock() as shift:
        manager.queue_task(Task(begin_and_sleep, (writer,), limits=WALL))
        manager._feed()
        os.read(reader, 1)
        shift(hours * 3600)
        (result,) = manager.as_completed()
    assert result.outcome is Outcome.TIMED_OUT
    assert result.elapsed_time is not None
    assert 1 * PACE <= result.elapsed_time < 600


@contextlib.contextmanager
def shifted_clock() -> Iterator[Callable[[float], Any]]:
    """What sets the clock by some seconds; it is put right again."""
    offset = time.time() - time.monotonic()
    try:
        yield lambda seconds: time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
    finally:
        time.clock_settime(time.CLOCK_REALTIME, offset + time.monotonic())


def test_memory_that_an_ancestor_lacks_is_no_limit_of_the_task() -> None:
    """The run's group is limited from outside while a task holds more."""
    reader, writer = os.pipe()
    with ProcessManager(1, backend="cgroup") as manager:
        manager.queue_task(Task(hold, (writer, 200 * MIB)))
        group = group_of(manager)
        os.read(reader, 1)
        with contextlib.suppress(FileNotFoundError):  # no swap is accounted
            put(f"{group}/memory.swap.max", "0")
        put(f"{group}/memory.max", str(100 * MIB))
        (result,) = manager.as_completed()
    os.close(reader)
    os.close(writer)
    assert result.outcome is Outcome.KILLED
    assert result.detail.startswith("killed by the OOM killer, and not for this task's own limit")


def hold(writer: int, size: int) -> None:
    held = b"x" * size
    os.write(writer, b"x")
    sleep_for_ever()
    assert held
