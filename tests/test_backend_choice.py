"""Which backend a manager takes, and what it says where that is not the one that was asked for."""

from __future__ import annotations

import os
import warnings

import pytest
from support import BackendName, parent

from gwsandbox import CgroupError, DegradedWarning, Limits, ProcessManager, Task, run


def square(n: int) -> int:
    return n * n


def _has_no_cgroup() -> str:
    try:
        ProcessManager(backend="cgroup")
    except CgroupError as error:
        return str(error)
    return ""


@pytest.mark.skipif(not _has_no_cgroup(), reason="this host gives cgroup v2")
def test_auto_falls_back_with_one_warning_that_names_what_is_lost_and_what_to_do() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ProcessManager(1) as manager:
            manager.queue_task(Task(square, (2,)))
            manager.queue_task(Task(square, (3,)))
    (warning,) = caught
    assert warning.category is DegradedWarning
    assert warning.filename == __file__
    text = str(warning.message)
    assert "held by rlimits and sampling" in text
    assert _has_no_cgroup() in text
    assert manager.task_results[0].enforcement.backend == "rlimit"


@pytest.mark.skipif(not _has_no_cgroup(), reason="this host gives cgroup v2")
def test_cgroup_on_a_host_without_it_is_an_error_that_says_why_and_what_to_do() -> None:
    with pytest.raises(CgroupError) as caught:
        ProcessManager(backend="cgroup")
    assert caught.value.step.startswith("find delegated root: ")
    assert caught.value.remedy


@pytest.mark.cgroup2
def test_auto_takes_the_cgroup_where_there_is_one() -> None:
    assert run(square, (2,)).enforcement.backend == "cgroup"


def test_what_is_not_held_fully_is_named() -> None:
    limits = Limits(memory="1GiB", cpus=0.5, pids=10, wall_seconds=60, cpu_seconds=60, output=100, file_size=100)
    enforcement = run(square, (2,), limits=limits, backend="rlimit").enforcement
    assert enforcement.backend == "rlimit"
    assert enforcement["wall_seconds"] == "deadline + SIGKILL"
    assert "cpus" not in enforcement.limits
    assert {"memory", "cpus", "pids"} <= enforcement.degraded.keys()
    assert all(enforcement.degraded.values())
    assert {*enforcement.limits, *enforcement.degraded} >= limits.requested().keys()


@pytest.mark.cgroup2
def test_the_cgroup_holds_all_of_it() -> None:
    limits = Limits(memory="1GiB", cpus=0.5, pids=10, wall_seconds=60, cpu_seconds=60, output=100, file_size=100)
    enforcement = run(square, (2,), limits=limits, backend="cgroup").enforcement
    assert enforcement.degraded == {}
    assert enforcement.limits.keys() == {*limits.requested(), "swap"}
    assert enforcement["memory"] == "memory.max"


def test_the_supervisor_is_not_the_parent_of_the_callers_own_children(backend: BackendName) -> None:
    supervisor = run(os.getppid, backend=backend).result
    assert supervisor not in {os.getpid(), parent(os.getpid())}


@pytest.mark.skipif(not _has_no_cgroup(), reason="this host gives cgroup v2")
def test_auto_warns_only_of_limits_that_are_held_less_than_fully() -> None:
    fully = Limits(wall_seconds=60, open_files=256)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ProcessManager(1, limits=fully) as manager:
            manager.queue_task(Task(square, (2,), limits=Limits(file_size="1GiB")))
        assert not caught
        with ProcessManager(1, limits=fully) as manager:
            manager.queue_task(Task(square, (2,)))
            manager.queue_task(Task(square, (2,), limits=Limits(cpus=0.5)))
            assert [warning.filename for warning in caught] == [__file__]
            manager.queue_tasks([Task(square, (2,), limits=Limits(memory="1GiB"))])
        ProcessManager(1, limits=Limits(memory="1GiB"))
    assert [warning.category for warning in caught] == [DegradedWarning, DegradedWarning]
