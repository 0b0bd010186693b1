"""What a guest does to its cgroups, and what it leaves: all of it is removed, and nobody's next start fails for it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import features
import pytest
from groups import make_group
from support import MIB, PACE, Program, is_running, run_all, run_one, run_open, sleep_for_ever

from gwsandbox import Hardening, Limits, Outcome, Task, TaskResult
from gwsandbox.backends.cgroup import delegation, run_group, subtree
from gwsandbox.backends.cgroup.delegation import find_root
from gwsandbox.linux import procfs

pytestmark = pytest.mark.cgroup2

DEEP = 1050  # more than Python recurses, and with names of four letters more than PATH_MAX


def own_leaf() -> str:
    return delegation.MOUNT + (procfs.own_cgroup() or "")


def put(path: str, value: str) -> None:
    Path(path).write_text(value, encoding="ascii")


def assert_timed_out(result: TaskResult) -> None:
    assert result.outcome is Outcome.TIMED_OUT, result
    assert result.exit_code == -signal.SIGKILL


# --- modes and depths ------------------------------------------------------------------------------------


def without_permissions(*, mine: bool) -> None:
    """Groups in groups, each without any permission, and their files too."""
    leaf = own_leaf()
    for name in ("a", "a/b", "a/b/c", "d"):
        os.mkdir(f"{leaf}/{name}")
    for name in ("a/b/c", "a/b", "a", "d", *(["."] if mine else [])):
        for file in ("cgroup.procs", "cgroup.events", "cgroup.kill", "cgroup.freeze", "cpu.stat"):
            with contextlib.suppress(FileNotFoundError):
                os.chmod(f"{leaf}/{name}/{file}", 0)
        os.chmod(f"{leaf}/{name}", 0)


def without_permissions_and_alive(*, mine: bool) -> None:
    if os.fork() == 0:
        sleep_for_ever()
    without_permissions(mine=mine)
    sleep_for_ever()


@pytest.mark.parametrize("mine", [False, True], ids=["below", "its own too"])
def test_groups_without_permissions_are_removed(*, mine: bool) -> None:
    tasks = [Task(without_permissions, kwargs={"mine": mine}), Task(abs, (-1,)), Task(abs, (-1,))]
    for result in run_all("cgroup", tasks, workers=1, hardening=Hardening.off()):
        assert result.success, result


@pytest.mark.parametrize("mine", [False, True], ids=["below", "its own too"])
def test_what_lives_in_groups_without_permissions_is_killed(*, mine: bool) -> None:
    task = Task(without_permissions_and_alive, kwargs={"mine": mine}, limits=Limits(wall_seconds=1 * PACE))
    (result,) = run_all("cgroup", [task], hardening=Hardening.off())
    assert_timed_out(result)


def close_the_run_group() -> None:
    """What later leaves are made in."""
    run = os.path.dirname(own_leaf())
    os.chmod(run, 0)


def test_a_run_group_without_permissions_goes_on() -> None:
    results = run_all(
        "cgroup",
        [Task(close_the_run_group), *(Task(abs, (-1,)) for _ in range(4))],
        workers=1,
        hardening=Hardening.off(),
    )
    assert all(result.success for result in results), results


def nest(top: str, depth: int, mode: int) -> None:
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=folder)
        inner = os.open("deep", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        os.close(folder)
        folder = inner
    for _ in range(depth):
        os.fchmod(folder, mode | 0o100)  # to leave it by its ".."
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        os.fchmod(folder, mode)
        os.close(folder)
        folder = above
    os.close(folder)


def nest_in_leaf(mode: int) -> None:
    nest(own_leaf(), DEEP, mode)


@pytest.mark.parametrize("mode", [0o755, 0o100], ids=oct)
def test_groups_nested_deeper_than_a_path_is_long_are_removed(mode: int) -> None:
    result = run_open("cgroup", nest_in_leaf, mode)
    assert result.success, result


# --- the next start --------------------------------------------------------------------------------------


@pytest.fixture
def leftover() -> Iterator[str]:
    """The run group of an owner that is dead."""
    path = make_group(f"gwsandbox-{2**22 + 1}-1-0")
    yield path
    with contextlib.suppress(FileNotFoundError):
        os.chmod(path, 0o755)
        run_group.destroy(path)


def test_leftovers_of_any_mode_and_depth_are_swept(leftover: str) -> None:
    nest(leftover, 50, 0)
    os.chmod(leftover, 0)
    assert run_one("cgroup", abs, -1).success
    assert not os.path.exists(leftover)


STARTS_AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
from gwsandbox import run
sys.stdin.readline()
for _ in range(2):
    print(run(abs, (-1,), backend="cgroup").outcome.name, flush=True)
"""


@pytest.mark.root
def test_a_leftover_that_cannot_be_removed_keeps_nobody_from_starting(leftover: str) -> None:
    """Another user's groups are in it."""
    top = f"{os.path.dirname(leftover)}/nobodys"
    below = f"{top}/{os.path.basename(leftover)}"
    for path in (top, below, f"{below}/roots", f"{below}/roots/inner", f"{below}/other"):
        os.mkdir(path)
    for path in (top, *(f"{top}/cgroup.{name}" for name in ("procs", "threads", "subtree_control")), below):
        os.chown(path, 65534, 65534)
    os.setxattr(top, "user.delegate", b"1")
    try:
        with Program(STARTS_AS_NOBODY, str(Path(delegation.__file__).parents[3]), stderr=subprocess.PIPE) as program:
            put(f"{top}/cgroup.procs", str(program.pid))
            program.say("begin")
            assert [program.line(), program.line()] == ["SUCCEEDED", "SUCCEEDED"]
            assert program.wait() == 0
            assert program.process.stderr is not None
            with program.process.stderr as stderr:
                said = stderr.read().decode()
        assert said.count("of a dead run cannot be removed: ") == 1
        assert os.listdir(below).count("roots") == 1
        assert not os.path.exists(f"{below}/other")
    finally:
        run_group.destroy(top)


def test_what_cannot_be_removed_is_said_once(
    leftover: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"{os.path.dirname(leftover)}/gwsandbox-{2**22 + 2}-1-0"
    os.mkdir(other)
    remove = subtree.remove

    def refused(name: str, above: int, path: str) -> None:
        if path == leftover:
            raise PermissionError
        remove(name, above, path)

    monkeypatch.setattr(subtree, "remove", refused)
    with caplog.at_level(logging.WARNING, "gwsandbox"):
        assert run_group.sweep(os.path.dirname(leftover)) == [other]
        assert run_group.sweep(os.path.dirname(leftover)) == []
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the cgroup {leftover} of a dead run cannot be removed: ")


# --- out of the leaf -------------------------------------------------------------------------------------


def outside() -> str:
    """A group beside the run group."""
    return f"{os.path.dirname(os.path.dirname(own_leaf()))}/outside"


@pytest.fixture
def haven() -> Iterator[str]:
    features.need("delegated")
    assert run_one("cgroup", abs, -1).success
    path = f"{find_root().path}/outside"
    os.mkdir(path)
    yield path
    os.rmdir(path)


def flee_and_sleep() -> None:
    put(f"{outside()}/cgroup.procs", "0")
    sleep_for_ever()


def test_a_guest_that_left_its_leaf_ends_at_its_deadline(haven: str) -> None:
    assert_timed_out(run_open("cgroup", flee_and_sleep, wall_seconds=1 * PACE))


def leave_a_child_outside(path: str) -> None:
    """And a grandchild, which daemonises."""
    put(f"{outside()}/cgroup.procs", "0")
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(path).write_text(str(os.getpid()), encoding="ascii")
            sleep_for_ever()
        os._exit(0)
    os.wait()
    while not os.path.exists(path) or not Path(path).read_text(encoding="ascii"):
        signal.sigtimedwait([], 0.01)


def and_sleep(do: Callable[[str], None], path: str) -> None:
    do(path)
    sleep_for_ever()


def test_what_a_guest_left_outside_of_its_leaf_dies_with_it(haven: str, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    result = run_open("cgroup", leave_a_child_outside, str(path))
    assert result.success, result
    assert not is_running(int(path.read_text()))
    path.unlink()
    assert_timed_out(run_open("cgroup", and_sleep, leave_a_child_outside, str(path), wall_seconds=2 * PACE))
    assert not is_running(int(path.read_text()))


def remove_own_leaf() -> str:
    leaf = own_leaf()
    put(f"{outside()}/cgroup.procs", "0")
    os.rmdir(leaf)
    return "value"


def test_a_leaf_that_is_gone_takes_no_result_with_it(haven: str) -> None:
    result = run_open("cgroup", remove_own_leaf, memory="1GiB", pids=10)
    assert result.success, result
    assert result.result == "value"
    assert result.usage.memory_peak_bytes is None or "ru_maxrss" in result.usage.sources["memory_peak_bytes"]
    assert "taken away" in result.enforcement.degraded["memory"]
    assert "taken away" in result.enforcement.degraded["pids"]


# --- limits that are not there ---------------------------------------------------------------------------


def take_controller_away(name: str) -> None:
    put(f"{os.path.dirname(own_leaf())}/cgroup.subtree_control", f"-{name}")


def hold(size: int) -> int:
    return len(bytearray(size))


def test_a_limit_without_a_file_is_an_error_and_not_no_limit() -> None:
    tasks = [
        Task(take_controller_away, ("memory",)),
        *(Task(hold, (200 * MIB,), limits=Limits(memory=64 * MIB)) for _ in range(3)),
    ]
    results = {id(result.task): result for result in run_all("cgroup", tasks, workers=1, hardening=Hardening.off())}
    assert results[id(tasks[0])].success
    assert (
        results[id(tasks[0])].usage.memory_peak_bytes is None
        or "not in the leaf" in (results[id(tasks[0])].usage.sources["memory_peak_bytes"])
    )
    for task in tasks[1:]:
        result = results[id(task)]
        if result.outcome is Outcome.SANDBOX_ERROR:
            assert result.detail.startswith("write limit: the memory controller was taken away from the run group: ")
            assert "/memory.max ('67108864'): No such file or directory [errno 2]; give it back: echo +memory >" in (
                result.detail
            )
        else:  # its leaf was there already
            assert "taken away above the leaf" in result.enforcement.degraded["memory"]
    assert results[id(tasks[-1])].outcome is Outcome.SANDBOX_ERROR


@pytest.mark.parametrize(("name", "limits"), [("pids", {"pids": 10}), ("cpu", {"cpus": 0.5})])
def test_other_limits_without_a_file(name: str, limits: dict[str, float]) -> None:
    if name not in Path(f"{delegation.MOUNT}/cgroup.controllers").read_text(encoding="ascii").split():
        pytest.skip(f"no {name} controller")
    task = Task(abs, (-1,), limits=Limits(**limits))  # type: ignore[arg-type]
    results = run_all(
        "cgroup",
        [Task(take_controller_away, (name,)), Task(abs, (-1,)), Task(abs, (-1,)), task],
        1,
        hardening=Hardening.off(),
    )
    (result,) = [result for result in results if result.task is task]
    if "cpus" in limits and result.success:
        assert "not delegated" in result.enforcement.degraded["cpus"]
        return
    assert result.outcome is Outcome.SANDBOX_ERROR, result
    assert f"the {name} controller was taken away" in result.detail


# --- who killed it ---------------------------------------------------------------------------------------


def die_as_of_systemd_oomd() -> None:
    """As its mark says, which it leaves on a cgroup that it kills."""
    os.setxattr(own_leaf(), "user.oomd_ooms", b"1")
    os.kill(os.getpid(), signal.SIGKILL)


def test_systemd_oomd_is_named() -> None:
    result = run_open("cgroup", die_as_of_systemd_oomd)
    assert result.outcome is Outcome.KILLED, result
    assert result.detail.startswith(
        "ended by SIGKILL, sent by systemd-oomd, as an ancestor cgroup or the host was short"
    )
