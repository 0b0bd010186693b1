"""What a user says of a run, checked once, and the backend that follows from it: for all that start sessions."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict

from gwsandbox.backends.base import Backend
from gwsandbox.backends.choose import find_backend, rlimit_degrades, warn_degraded
from gwsandbox.backends.rlimit import RlimitBackend
from gwsandbox.client.session import Session, memory_limit
from gwsandbox.memory_usage import get_available_memory_bytes
from gwsandbox.model.errors import CgroupError
from gwsandbox.model.hardening import Hardening, check_hardening
from gwsandbox.model.limits import (
    GIB,
    LARGEST_SIZE,
    LONGEST_SECONDS,
    MOST_WORKERS,
    Limits,
    check_count,
    check_number,
    check_size,
)
from gwsandbox.model.options import RunOptions
from gwsandbox.model.result import TaskResult
from gwsandbox.model.task import Command, Task, check_limits
from gwsandbox.model.text import format_size, shorten


class PoolOptions(TypedDict, total=False):
    """What an executor and a pool take by keyword as ``ProcessManager`` does."""

    worker_timeout_seconds: float | None
    memory_limit_in_gib: float | None
    limits: Limits | None
    total_memory: int | str | None
    hardening: Hardening | None
    backend: Literal["auto", "cgroup", "rlimit"]
    start_method: Literal["fork", "forkserver"]
    preload: Iterable[str]


def check_names(options: Mapping[str, object]) -> None:
    """See that a caller who has no checker of types gives no other names.

    Raises:
        TypeError: There is another.
    """
    if other := set(options) - PoolOptions.__annotations__.keys():
        raise TypeError(
            f"unexpected keyword argument {min(other)!r}; there are {', '.join(PoolOptions.__annotations__)}"
        )


class Parameters:
    """The parameters of ``ProcessManager`` and its like, checked; each attribute has the parameter's name."""

    def __init__(
        self,
        *,
        max_workers: int | Literal["auto"] | None,
        worker_timeout_seconds: float | None = None,
        memory_limit_in_gib: float | None = None,
        limits: Limits | None = None,
        total_memory: int | str | None = None,
        hardening: Hardening | None = None,
        backend: str = "auto",
        start_method: str = "fork",
        preload: Iterable[str] = (),
        pass_through: bool = False,
        grace_seconds: float = 0.0,
        says_begins: bool = False,
        stacklevel: int = 2,
    ) -> None:
        """Check them, and find the backend.

        Args:
            max_workers: See ``ProcessManager``, as all that are not named here.
            worker_timeout_seconds: Likewise.
            memory_limit_in_gib: Likewise.
            limits: Likewise.
            total_memory: Likewise.
            hardening: Likewise.
            backend: Likewise.
            start_method: Likewise.
            preload: Likewise.
            pass_through: See ``RunOptions``.
            grace_seconds: See ``RunOptions``.
            says_begins: See ``RunOptions``.
            stacklevel: Of a warning, from the caller of this.

        Raises:
            TypeError, ValueError, CgroupError: As ``ProcessManager``.
        """
        if start_method not in {"fork", "forkserver"}:
            raise ValueError(f"start_method must be 'fork' or 'forkserver', not {start_method!r}")
        self.worker_timeout_seconds = _plain(worker_timeout_seconds, "worker_timeout_seconds")
        self.memory_limit_in_gib = _plain(memory_limit_in_gib, "memory_limit_in_gib")
        self.limits = _limits(limits, self.worker_timeout_seconds, self.memory_limit_in_gib)
        self.total_memory = check_size(total_memory or 0, "total_memory")
        self._check_fits(self.limits)
        self.max_workers = _workers(self._as_many_as_fit() if max_workers == "auto" else max_workers)
        self.hardening = _existing_user(check_hardening(hardening))
        self.start_method = start_method
        if self.hardening.needs_clean_interpreter and not pass_through:  # with which there are programs only
            self.start_method = "forkserver"
        self.preload = _module_names(preload, self.start_method)
        # For the command line: the program keeps the caller's terminal, session and standard descriptors, and it gets
        # SIGTERM so many seconds before it is killed.
        self.pass_through = pass_through
        self.grace_seconds = grace_seconds
        self.says_begins = says_begins
        self.backend: Backend
        self.backend, self._refused = find_backend(backend)
        self.warn_if_degraded(self.limits, stacklevel=stacklevel + 1)
        self._may_degrade = backend == "auto"

    def session(self, inherited_tasks: dict[int, Task | Command], results: deque[TaskResult] | None = None) -> Session:
        """A session that is not started yet.

        Args:
            inherited_tasks: See ``Session``.
            results: See ``Session``.
        """
        options = RunOptions(
            max_workers=self.max_workers,
            limits=self.limits,
            start_method=self.start_method,
            timeout_seconds=self.worker_timeout_seconds,
            memory_limit_in_gib=self.memory_limit_in_gib,
            pass_through=self.pass_through,
            grace_seconds=self.grace_seconds,
            says_begins=self.says_begins,
            preload=self.preload,
            hardening=self.hardening,
            total_memory=self.total_memory,
        )
        return Session(self.backend, options, inherited_tasks, results)

    def degrade(self, error: CgroupError, *, stacklevel: int) -> None:
        """Go on with the rlimit backend after the cgroup backend could not be got ready, where the user allows that.

        Raises:
            CgroupError: The user does not allow it.
        """
        if not self._may_degrade:
            raise error
        self.backend, self._refused = RlimitBackend(), error
        self.warn_if_degraded(self.limits, stacklevel=stacklevel + 1)

    # --- memory -------------------------------------------------------------------------------------

    def has_memory_for(self, task: Task | Command, sessions: Iterable[Session]) -> bool:
        """Whether the memory limit of a task fits under the total, beside those of the unfinished tasks."""
        if not self.total_memory:
            return True
        promised = sum(session.promised_memory() for session in sessions)
        return promised + memory_limit(self.limits, task) <= self.total_memory

    def _check_fits(self, limits: Limits) -> None:
        if self.total_memory and int(limits.memory or 0) > self.total_memory:
            raise ValueError(
                f"a memory limit of {format_size(int(limits.memory or 0))} does not fit under total_memory of "
                f"{format_size(self.total_memory)}: such a task could never start"
            )

    def _as_many_as_fit(self) -> int:
        """As many tasks at a time as there are CPUs, and memory for their limits."""
        workers = len(os.sched_getaffinity(0))
        if memory := int(self.limits.memory or 0):
            there_is = min(self.total_memory or LARGEST_SIZE, get_available_memory_bytes())
            workers = min(workers, max(there_is // memory, 1))
        return workers

    def accept(self, task: Task | Command, *, stacklevel: int) -> None:
        """Warn where this is the first task with a limit of its own that is held less than fully.

        Raises:
            ValueError: Its memory limit does not fit under the total.
        """
        if task.limits is not None:
            self._check_fits(task.limits)
        if self._refused is not None and task.limits is not None and task.limits.requested():
            self.warn_if_degraded(task.limits, stacklevel=stacklevel + 1)

    def warn_if_degraded(self, limits: Limits, *, stacklevel: int) -> None:
        """Warn once, unless ``limits`` are some, and each of them is held fully."""
        if self._refused is not None and (self.total_memory or not limits.requested() or rlimit_degrades(limits)):
            refused, self._refused = self._refused, None
            warn_degraded(refused, stacklevel=stacklevel + 1)


def check_task(task: object) -> Task | Command:
    """``task`` as it is.

    Raises:
        TypeError: It is neither a ``Task`` nor a ``Command``.
    """
    if not isinstance(task, Task | Command):
        raise TypeError(f"a task must be a Task or a Command, not {type(task).__name__}: {shorten(task)}")
    return task


def _workers(max_workers: int | None) -> int:
    number = check_count(0 if max_workers is None else max_workers, "max_workers")
    if number > MOST_WORKERS:
        raise ValueError(f"max_workers of {number} is more than any machine can run at a time ({MOST_WORKERS})")
    return number or len(os.sched_getaffinity(0))


def _existing_user(hardening: Hardening) -> Hardening:
    if hardening.user not in {None, "slot"}:
        import pwd  # noqa: PLC0415 - of no other use

        try:
            pwd.getpwnam(str(hardening.user))
        except KeyError:
            raise ValueError(f"hardening has user={hardening.user!r}, and there is no such user") from None
    return hardening


def _module_names(preload: Iterable[str], start_method: str) -> tuple[str, ...]:
    if isinstance(preload, str):
        raise TypeError(f"preload must be names of modules, as in preload=({preload!r},), and not one str")
    names = tuple(preload)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"preload must be names of modules, not {type(name).__name__}: {shorten(name)}")
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"preload has {name!r}, which is no name of a module")
    if names and start_method != "forkserver":
        raise ValueError(
            "preload goes with start_method='forkserver'; with 'fork' guests have what the caller has imported"
        )
    return names


def _plain(number: float | None, name: str) -> float | None:
    return None if number is None else check_number(number, name)


def _limits(limits: Limits | None, timeout: float | None, memory_in_gib: float | None) -> Limits:
    """All limits as one; the two that existing scripts give by position are named in errors as they know them."""
    memory = None
    if memory_in_gib is not None:
        in_bytes = memory_in_gib * GIB
        if 0 < in_bytes < 1 or in_bytes > LARGEST_SIZE:
            raise ValueError(f"memory_limit_in_gib of {memory_in_gib!r} is no size that a machine has")
        memory = int(in_bytes)
    if timeout is not None and timeout > LONGEST_SECONDS:
        raise ValueError(f"worker_timeout_seconds of {timeout!r} is more than 31 years; the unit is seconds")
    return (check_limits(limits) or Limits()).overridden_by(Limits(wall_seconds=timeout, memory=memory))
