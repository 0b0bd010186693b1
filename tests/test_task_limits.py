"""Limits of a manager and of a task: which of them holds, what a limit that is reached says, and which numbers they take."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
from support import BackendName, sleep_for_ever

from gwsandbox import Limits, Outcome, ProcessManager, Task


def square(n: int) -> int:
    return n * n


def test_a_tasks_own_limits_override_the_managers_field_by_field(backend: BackendName) -> None:
    manager = ProcessManager(
        2, worker_timeout_seconds=3600, limits=Limits(open_files=64, file_size=1000), backend=backend
    )
    with manager:
        manager.queue_task(Task(sleep_for_ever, limits=Limits(wall_seconds=0.2)))
    (result,) = manager.task_results
    assert result.outcome is Outcome.TIMED_OUT
    assert result.timeout_seconds == 0.2
    assert result.enforcement.limits.keys() == {"wall_seconds", "open_files", "file_size"}
    assert result.enforcement.backend == backend


def test_limits_are_shown_as_they_were_given(backend: BackendName) -> None:
    manager = ProcessManager(1, 5, 4, backend=backend)
    with manager:
        manager.queue_task(Task(square, (1,)))
        manager.queue_task(Task(square, (2,), limits=Limits(memory="512MiB", wall_seconds="1m")))
        manager.queue_task(Task(square, (3,), limits=Limits(memory=0, wall_seconds=0)))
    shown = [(result.timeout_seconds, result.memory_limit_in_gib) for result in manager.task_results]
    assert repr(shown) == "[(5, 4), (60.0, 0.5), (0, 0)]"


def test_zero_and_none_are_no_limit(backend: BackendName) -> None:
    for none in (0, None):
        with ProcessManager(none, none, none, backend=backend) as manager:
            manager.queue_task(Task(square, (2,)))
        (result,) = manager.task_results
        assert (result.success, result.timeout_seconds, result.memory_limit_in_gib) == (True, none, none)
        assert manager.max_workers == len(os.sched_getaffinity(0))
        assert result.enforcement.limits == {}


@pytest.mark.parametrize("name", ["max_workers", "worker_timeout_seconds", "memory_limit_in_gib"])
@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, 1e300, pytest.param(10**400, id="huge")])
def test_bad_numbers_are_value_errors_that_name_the_parameter(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        ProcessManager(**{name: value}, backend="rlimit")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_workers", "worker_timeout_seconds", "memory_limit_in_gib"])
@pytest.mark.parametrize("value", ["5", True, [1], object()])
def test_what_is_no_number_is_a_type_error_that_names_the_parameter(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        ProcessManager(**{name: value}, backend="rlimit")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"backend": "docker"}, ValueError, "backend must be 'auto', 'cgroup' or 'rlimit', not 'docker'"),
        ({"start_method": "spawn"}, ValueError, "start_method must be 'fork' or 'forkserver', not 'spawn'"),
        ({"preload": "json"}, TypeError, "preload must be names of modules, as in preload=\\('json',\\), and not one"),
        ({"preload": [5]}, TypeError, "preload must be names of modules, not int: 5"),
        ({"preload": ["a-b"]}, ValueError, "preload has 'a-b', which is no name of a module"),
        ({"preload": ["json"]}, ValueError, "preload goes with start_method='forkserver'; with 'fork' guests have"),
        ({"limits": {"memory": 5}}, TypeError, "limits must be gwsandbox.Limits or None, not dict"),
        ({"hardening": 1}, TypeError, "hardening must be"),
        ({"max_workers": 1.5}, ValueError, "max_workers must be a whole number, not 1.5"),
        ({"memory_limit_in_gib": 1e-12}, ValueError, "memory_limit_in_gib of 1e-12"),
    ],
)
def test_bad_parameters(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ProcessManager(**{"backend": "rlimit", **options})


def test_bad_tasks() -> None:
    manager = ProcessManager(backend="rlimit")
    with pytest.raises(TypeError, match="a task must be a Task or a Command, not function"):
        manager.queue_task(square)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not iterable"):
        manager.queue_tasks(Task(square))  # type: ignore[arg-type]


def test_workers_may_be_a_whole_float_as_existing_scripts_compute_it() -> None:
    assert ProcessManager(13.02 // 4, backend="rlimit").max_workers == 3  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    numbers: tuple[Any, ...] = np.int64(2), np.int32(60), np.float32(0.5)
    with ProcessManager(*numbers, backend="rlimit") as manager:
        manager.queue_task(Task(square, (2,)))
    (result,) = manager.task_results
    assert (manager.max_workers, result.timeout_seconds, result.memory_limit_in_gib) == (2, 60, 0.5)
    assert {type(result.timeout_seconds), type(result.memory_limit_in_gib)} <= {int, float}
