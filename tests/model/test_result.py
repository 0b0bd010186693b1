"""``TaskResult``, ``Usage`` and ``Enforcement``."""

from __future__ import annotations

import pickle
import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from gwsandbox import Enforcement, Outcome, Task, TaskResult, Usage

THIRTEEN = [
    "task",
    "success",
    "result",
    "exception",
    "exit_code",
    "timeout_seconds",
    "memory_limit_in_gib",
    "start_time",
    "end_time",
    "elapsed_time",
    "timed_out",
    "max_memory_used_in_gib",
    "out_of_memory",
]

TASK = Task(len, ("abc",))


def test_repr_starts_with_the_thirteen_in_order() -> None:
    shown = repr(TaskResult(TASK, success=True, result=3, exit_code=0, timeout_seconds=5))
    assert shown.startswith(
        "TaskResult(task=Task(func=len, args=('abc'), kwargs=()), success=True, result=3, exception=None, "
        "exit_code=0, timeout_seconds=5, memory_limit_in_gib=None, start_time=None, end_time=None, "
        "elapsed_time=None, timed_out=False, max_memory_used_in_gib=None, out_of_memory=False"
    )
    assert re.findall(r"(\w+)=", shown.replace(repr(TASK), "-"))[:13] == THIRTEEN


def test_repr_cuts_each_value_at_100_characters() -> None:
    shown = repr(TaskResult(Task(len, ("y" * 500,)), success=True, result=b"x" * 500))
    assert f"result=b'{'x' * 98}..., " in shown
    assert "task=Task(func=len, args=('yyy" in shown
    assert len(shown) < 800


def test_repr_survives_a_result_whose_own_repr_raises() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert "result=<Shy object, whose repr raised RuntimeError>" in repr(TaskResult(TASK, success=True, result=Shy()))


def test_the_thirteen_are_the_first_fields_and_always_present() -> None:
    assert [f.name for f in fields(TaskResult)][:13] == THIRTEEN
    result = TaskResult(TASK, success=False)
    assert all(hasattr(result, name) for name in THIRTEEN)


def test_equality_and_hash_rest_on_task_success_result_and_exception() -> None:
    one = TaskResult(TASK, success=True, result=3, start_time=1.0, usage=Usage(wall_seconds=1.0))
    assert one == TaskResult(TASK, success=True, result=3, start_time=2.0)
    assert one != TaskResult(TASK, success=True, result=4)
    assert one != TaskResult(TASK, success=False, result=3)
    assert one != TaskResult(Task(len), success=True, result=3)
    error = ValueError()
    assert TaskResult(TASK, success=False, exception=error) == TaskResult(TASK, success=False, exception=error)
    assert TaskResult(TASK, success=False, exception=error) != TaskResult(TASK, success=False, exception=ValueError())
    assert one != "another type"
    assert len({one, TaskResult(TASK, success=True, result=3), TaskResult(TASK, success=False)}) == 2


def test_an_unhashable_result_makes_it_unhashable() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(TaskResult(TASK, success=True, result=[]))


def test_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TaskResult(TASK, success=True).success = False  # type: ignore[misc]


def test_one_made_by_hand_is_coherent() -> None:
    assert TaskResult(TASK, success=True).outcome is Outcome.SUCCEEDED
    assert TaskResult(TASK, success=False).outcome is Outcome.FAILED
    assert TaskResult(TASK, success=False, outcome=Outcome.KILLED).outcome is Outcome.KILLED


def test_pickles_whole() -> None:
    result = TaskResult(
        TASK,
        success=True,
        result=3,
        usage=Usage(wall_seconds=1.5, memory_peak_bytes=7, sources={"wall_seconds": "CLOCK_MONOTONIC"}),
        enforcement=Enforcement("rlimit", {"memory": "x"}, {"memory": "y"}),
    )
    again = pickle.loads(pickle.dumps(result))
    assert all(getattr(again, f.name) == getattr(result, f.name) for f in fields(TaskResult))


def test_usage_says_none_for_what_was_not_measured() -> None:
    usage = Usage()
    assert [f.name for f in fields(usage) if getattr(usage, f.name) is not None] == ["sources"]
    assert replace(usage, pids_peak=0).pids_peak == 0


def test_enforcement_can_be_asked_by_limit() -> None:
    enforcement = Enforcement("cgroup", {"memory": "memory.max"}, {"cpus": "no controller"})
    assert enforcement["memory"] == "memory.max"
    with pytest.raises(KeyError):
        enforcement["pids"]


def test_outcomes_are_those_of_the_contract() -> None:
    assert [outcome.name for outcome in Outcome] == [
        "SUCCEEDED",
        "FAILED",
        "TIMED_OUT",
        "CPU_TIME_EXCEEDED",
        "OUT_OF_MEMORY",
        "OUTPUT_EXCEEDED",
        "CRASHED",
        "KILLED",
        "CANCELLED",
        "SANDBOX_ERROR",
    ]
