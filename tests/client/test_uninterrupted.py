"""Ctrl-C in the very moment in which a function begins."""

from __future__ import annotations

import _thread
import operator
from collections import deque
from collections.abc import Callable
from itertools import starmap
from typing import Any

import pytest
from support import BackendName

from gwsandbox import Outcome, ProcessManager, Task
from gwsandbox.client.uninterrupted import enters_uninterrupted


def begin_with_a_signal(function: Callable[..., Any], *arguments: Any) -> None:
    """Call ``function`` with SIGINT pending: both calls are made by one call of C, which looks for no signals."""
    deque(starmap(operator.call, ((_thread.interrupt_main,), (function, *arguments))), maxlen=0)


def step(entered: list[str]) -> None:
    try:
        entered.append("try")
        for _ in range(2):
            len(entered)
    finally:
        entered.append("finally")


def test_a_signal_waits_for_the_try_with_which_a_function_begins() -> None:
    entered: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        begin_with_a_signal(step, entered)
    assert entered == []  # as any function
    with pytest.raises(KeyboardInterrupt):
        begin_with_a_signal(enters_uninterrupted(step), entered)
    assert entered == ["try", "finally"]
    step(entered)
    assert entered == ["try", "finally"] * 2


def test_a_block_that_is_left_by_a_signal_in_that_moment_has_all_results(backend: BackendName) -> None:
    manager = ProcessManager(1, backend=backend).__enter__()
    manager.queue_tasks(Task(abs, (number,)) for number in range(2))
    for number in range(4):
        manager.queue_task(Task(abs, (number,)))
    next(manager.as_completed())
    with pytest.raises(KeyboardInterrupt):
        begin_with_a_signal(manager.__exit__, ValueError, ValueError(), None)
    assert len(manager.task_results) >= 4
    assert {result.outcome for result in manager.task_results} <= {Outcome.SUCCEEDED, Outcome.CANCELLED}
