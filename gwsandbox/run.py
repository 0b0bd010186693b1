"""``run``: one task, blocking."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Literal, TypedDict, TypeVar, Unpack, overload

from gwsandbox.manager import ProcessManager
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import TaskResult
from gwsandbox.model.task import Command, CommandOutput, Task

R = TypeVar("R")


class _Options(TypedDict, total=False):
    limits: Limits | None
    hardening: Hardening | None
    backend: Literal["auto", "cgroup", "rlimit"]
    start_method: Literal["fork", "forkserver"]


@overload
def run(task_or_func: Command, **options: Unpack[_Options]) -> TaskResult[CommandOutput]: ...


@overload
def run(task_or_func: Task[..., R], **options: Unpack[_Options]) -> TaskResult[R]: ...


@overload
def run(
    task_or_func: Callable[..., Coroutine[Any, Any, R]],
    args: Iterable[Any] | None = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[_Options],
) -> TaskResult[R]: ...


@overload
def run(
    task_or_func: Callable[..., R],
    args: Iterable[Any] | None = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[_Options],
) -> TaskResult[R]: ...


def run(
    task_or_func: Task | Command | Callable[..., Any],
    args: Iterable[Any] | None = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    limits: Limits | None = None,
    hardening: Hardening | None = None,
    backend: Literal["auto", "cgroup", "rlimit"] = "auto",
    start_method: Literal["fork", "forkserver"] = "fork",
) -> TaskResult:
    """Run one task in a process of its own, and wait for its result.

    ::

        result = run(convert, ("in.doc",), limits=Limits(memory="512MiB", wall_seconds=5))

    Args:
        task_or_func: A ``Task``, a ``Command``, or a function to be called with ``args`` and ``kwargs``.
        args: Positional arguments of a function.
        kwargs: Keyword arguments of a function.
        limits: Limits; those of a ``Task`` or ``Command`` override them.
        hardening: See ``ProcessManager``, as the two below.
        backend: How limits are held.
        start_method: How the guest's process comes to be.

    Raises:
        TypeError, ValueError, SandboxError: As ``ProcessManager``.
    """
    if isinstance(task_or_func, Task | Command):
        if tuple(args or ()) or kwargs:
            raise TypeError(f"args and kwargs go with a function; {task_or_func!r} has its own")
        task = task_or_func
    else:
        task = Task(task_or_func, args, kwargs)
    with ProcessManager(1, limits=limits, hardening=hardening, backend=backend, start_method=start_method) as manager:
        manager.queue_task(task)
    return manager.task_results[0]
