"""Errors of guests that users of ``concurrent.futures`` take for a broken pool.

Their handlers see them, though the executor goes on. A module of its own, as ``concurrent.futures.process`` imports
``multiprocessing``.
"""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from gwsandbox.model import errors
from gwsandbox.model.result import Outcome, TaskResult


class GuestCrashed(errors.GuestCrashed, BrokenProcessPool):
    """A fatal signal of the guest's own (SIGSEGV, SIGABRT, …) ended it; the executor goes on."""


class GuestKilled(errors.GuestKilled, BrokenProcessPool):
    """A signal from outside, or the OOM killer, ended the guest; the executor goes on."""


class InitializerFailed(errors.InitializerFailed, BrokenProcessPool):
    """The initializer raised in a guest; where it has never worked, the executor takes no more tasks."""


_KINDS: dict[type[BaseException], type[BrokenProcessPool]] = {
    errors.GuestCrashed: GuestCrashed,
    errors.GuestKilled: GuestKilled,
    errors.InitializerFailed: InitializerFailed,
}


def as_broken(result: TaskResult, broken: str) -> TaskResult:
    """A result whose exception is a ``BrokenExecutor`` too, where users of executors expect one.

    Args:
        result: Of a task that has not succeeded.
        broken: Why the executor is broken, for which the task was cancelled; "" where it is not.
    """
    error = result.exception
    if broken and result.outcome is Outcome.CANCELLED:
        return replace(result, outcome=Outcome.FAILED, detail=broken, exception=InitializerFailed(broken))
    if error is None or (kind := _KINDS.get(type(error))) is None:
        return result
    made = kind(str(error))
    made.__cause__ = error.__cause__
    return replace(result, exception=made)
