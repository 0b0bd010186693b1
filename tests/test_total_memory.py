"""``total_memory``: one ceiling over all that runs, and only as many tasks at a time as fit under it."""

from __future__ import annotations

import asyncio
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from support import MIB, BackendName

from gwsandbox import DegradedWarning, Limits, Outcome, ProcessManager, SandboxExecutor, Task, TaskResult
from gwsandbox.aio import SandboxPool

LIMIT, TOTAL = 64 * MIB, 256 * MIB


def come_and_go(fd: int, filled: int) -> int:
    """Say so, each in one write, so that the order of the bytes is that of the events."""
    os.write(fd, b"+")
    length = len(bytearray(filled))
    time.sleep(0.05)  # so that others would come if they might
    os.write(fd, b"-")
    return length


def by_manager(tasks: list[Task], **options: Any) -> list[TaskResult]:
    with ProcessManager(8, **options) as manager:
        for task in tasks:
            manager.queue_task(task)
    return manager.task_results


def by_manager_drawing(tasks: list[Task], **options: Any) -> list[TaskResult]:
    with ProcessManager(8, **options) as manager:
        manager.queue_tasks(tasks)
        return list(manager.as_completed())


def by_executor(tasks: list[Task], **options: Any) -> list[TaskResult]:
    with SandboxExecutor(8, **options) as executor:
        futures = [executor.submit(task) for task in tasks]
        for future in futures:
            future.result()
    return [future.task_result for future in futures if future.task_result is not None]


def by_pool(tasks: list[Task], **options: Any) -> list[TaskResult]:
    async def main() -> list[TaskResult]:
        async with SandboxPool(8, **options) as pool:
            return [result async for result in pool.as_completed(tasks)]

    return asyncio.run(main())


@pytest.mark.parametrize("run", [by_manager, by_manager_drawing, by_executor, by_pool])
def test_a_task_starts_only_if_it_fits(
    backend: BackendName, run: Callable[..., list[TaskResult]], pipe: tuple[int, int]
) -> None:
    """Ten tasks of a quarter each, one of them of a half: none is killed for the sum."""
    tasks = [Task(come_and_go, (pipe[1], LIMIT // 2)) for _ in range(9)]
    tasks.append(Task(come_and_go, (pipe[1], LIMIT // 2), limits=Limits(memory=2 * LIMIT)))
    results = run(tasks, backend=backend, limits=Limits(memory=LIMIT), total_memory=TOTAL)
    assert [result.outcome for result in results] == [Outcome.SUCCEEDED] * 10
    assert {result.enforcement["total_memory"] for result in results} <= {"memory.max of the run group", "admission"}
    assert all(("total_memory" in result.enforcement.degraded) == (backend == "rlimit") for result in results)
    alive = most = 0
    for byte in os.read(pipe[0], 100):
        alive += 1 if byte == ord("+") else -1
        most = max(most, alive)
    assert alive == 0
    assert most <= 4


def test_what_can_never_start_is_refused(backend: BackendName) -> None:
    with pytest.raises(ValueError, match=r"128 MiB does not fit under total_memory of 64 MiB"):
        ProcessManager(limits=Limits(memory="128MiB"), total_memory="64MiB", backend=backend)
    large = Task(abs, (1,), limits=Limits(memory="128MiB"))
    with ProcessManager(1, total_memory="64MiB", backend=backend) as manager:
        with pytest.raises(ValueError, match="does not fit"):
            manager.queue_task(large)
        manager.queue_tasks(iter([large]))
        with pytest.raises(ValueError, match="does not fit"):
            list(manager.as_completed())
    with SandboxExecutor(1, total_memory="64MiB", backend=backend) as executor:
        with pytest.raises(ValueError, match="does not fit"):
            executor.submit(large)
        with pytest.raises(ValueError, match="does not fit"):
            executor.with_limits(memory="65MiB").submit(abs, 1)


def fill(size: int) -> int:
    return len(bytearray(size))


@pytest.mark.cgroup2
def test_an_oom_of_the_run_group_is_said_as_what_it_is() -> None:
    """Neither task has a limit of its own, so both start; one of them is too much."""
    with ProcessManager(1, backend="cgroup", total_memory=32 * MIB) as manager:
        manager.queue_task(Task(fill, (MIB,)))
        manager.queue_task(Task(fill, (128 * MIB,)))
        manager.queue_task(Task(fill, (MIB,)))
    first, second, third = manager.task_results
    assert (first.outcome, second.outcome, third.outcome) == (Outcome.SUCCEEDED, Outcome.KILLED, Outcome.SUCCEEDED)
    assert "reached total_memory of 32 MiB" in second.detail
    assert not second.out_of_memory
    own = Task(fill, (64 * MIB,), limits=Limits(memory=8 * MIB))
    with ProcessManager(1, backend="cgroup", total_memory=32 * MIB) as manager:
        manager.queue_task(own)
    assert manager.task_results[0].outcome is Outcome.OUT_OF_MEMORY


def test_as_many_workers_as_there_is_memory_for() -> None:
    cpus = len(os.sched_getaffinity(0))
    options: dict[str, Any] = {"backend": "rlimit"}
    assert ProcessManager("auto", **options).max_workers == cpus
    assert ProcessManager("auto", limits=Limits(memory=MIB), total_memory=MIB, **options).max_workers == 1
    assert ProcessManager("auto", limits=Limits(memory=MIB), total_memory="1GiB", **options).max_workers == cpus
    assert ProcessManager("auto", memory_limit_in_gib=1e6, **options).max_workers == 1
    with pytest.raises(TypeError, match="max_workers"):
        ProcessManager("many", **options)  # type: ignore[arg-type]


def test_a_total_that_nothing_holds_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rlimit backend, where the limits of the tasks themselves are held fully."""
    from gwsandbox.backends.rlimit import RlimitBackend
    from gwsandbox.model.errors import CgroupError

    refused = CgroupError("find delegated root")
    monkeypatch.setattr("gwsandbox.client.parameters.find_backend", lambda _: (RlimitBackend(), refused))
    with pytest.warns(DegradedWarning):
        ProcessManager(limits=Limits(wall_seconds=5), total_memory="1GiB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ProcessManager(limits=Limits(wall_seconds=5))
