"""The worker pool: one supervisor runs attempt after attempt. The service replaces a lost or outdated supervisor."""

from __future__ import annotations

import math
import os
import time
import warnings
from dataclasses import dataclass, replace

from gwsandbox.backends.choose import choose_backend
from gwsandbox.client.session import Session
from gwsandbox.model.errors import CgroupError, DegradedWarning
from gwsandbox.model.limits import Limits
from gwsandbox.model.options import RunOptions
from gwsandbox.model.result import TaskResult
from gwsandbox.model.task import Command, Task
from gwsandbox.service import worker_function
from gwsandbox.service.config.config import ServiceConfig
from gwsandbox.service.spool.spool import GuestPaths, StagedAttempt

OVERDUE_SECONDS = 30.0  # that a supervisor has to report an attempt whose deadline has passed


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt that has ended.

    Args:
        staged: The attempt; ``None`` for the probe.
        result: How it ended.
    """

    staged: StagedAttempt | None
    result: TaskResult


@dataclass(frozen=True, slots=True)
class _Running:
    """An attempt that runs.

    Args:
        staged: The attempt; ``None`` for the probe.
        task: Its task.
        overdue_at: When its supervisor must have ended it; an instant of the monotonic clock.
    """

    staged: StagedAttempt | None
    task: Task | Command
    overdue_at: float


class WorkerPool:
    """Runs up to ``slots`` attempts at a time.

    The guests read files of strangers, so the service does not trust them: they hold no descriptor of the service,
    and the service unpickles nothing that they send.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._session: Session | None = None
        self._running: dict[int, _Running] = {}  # by identity of the task: equal tasks are not the same
        self._last_number = 0
        self._is_outdated = False

    # --- the supervisor -----------------------------------------------------------------------------

    def start(self) -> list[str]:
        """Start a supervisor.

        Returns:
            Warnings that name the limits that are held less than fully.

        Raises:
            SandboxError: The supervisor cannot be started.
        """
        worker = self._config.worker
        function = None if worker.function is None else worker_function.load_function(worker.function, worker.path)
        worker_function.set_function(function)
        options = RunOptions(
            max_workers=self.slots,
            limits=Limits(),
            start_method="fork",
            trusted=False,
            hardening=self._config.hardening,
        )
        self._is_outdated = False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DegradedWarning)
            backend = choose_backend(self._config.backend, stacklevel=1)
        messages = [str(warning.message) for warning in caught]
        try:
            self._session = _started(Session(backend, options, {}))
        except CgroupError as error:
            if self._config.backend != "auto":
                raise
            messages.append(f"limits are held by rlimits and sampling, as cgroup v2 cannot be used: {error}")
            self._session = _started(Session(choose_backend("rlimit", stacklevel=1), options, {}))
        return messages

    def close(self) -> None:
        """Cancel the attempts that run, and return when nothing of the supervisor is left."""
        if self._session is not None:
            session, self._session = self._session, None
            session.close()

    def reconfigure(self, config: ServiceConfig) -> None:
        """Take over a configuration: now where that is possible, else with the next supervisor."""
        before, self._config = self._config, config
        self._is_outdated |= any(
            getattr(before, name) != getattr(config, name) for name in ("worker", "workers", "backend", "hardening")
        )

    @property
    def needs_another(self) -> bool:
        """Whether this supervisor can take no more attempts: it is outdated, or gone."""
        return self._is_outdated or self._session is None or self._session.lost

    @property
    def slots(self) -> int:
        """How many attempts may run at a time."""
        return self._config.workers or len(os.sched_getaffinity(0))

    @property
    def has_room(self) -> bool:
        """Whether another attempt can start now."""
        return not self.needs_another and len(self._running) < self.slots

    @property
    def is_probing(self) -> bool:
        """Whether the probe runs."""
        return any(one.staged is None for one in self._running.values())

    def __len__(self) -> int:
        """How many attempts run, the probe included."""
        return len(self._running)

    def fileno(self) -> int:
        """The descriptor that is readable when ``finished`` has something."""
        assert self._session is not None
        return self._session.fileno()

    # --- attempts -----------------------------------------------------------------------------------

    def start_attempt(self, staged: StagedAttempt) -> None:
        """Start an attempt."""
        self._start(staged, self._task(staged.paths))

    def start_probe(self) -> None:
        """Start a task that does nothing, under the limits of an attempt: it shows whether a sandbox works at all."""
        self._start(None, Task(worker_function.do_nothing, limits=self._config.limits))

    def _start(self, staged: StagedAttempt | None, task: Task | Command) -> None:
        assert self._session is not None
        wall_seconds = self._config.limits.requested().get("wall_seconds", math.inf)
        overdue_at = time.monotonic() + wall_seconds + OVERDUE_SECONDS
        self._running[id(task)] = _Running(staged, task, overdue_at)
        self._last_number += 1
        self._session.submit(self._last_number, task)
        self._session.flush()

    def _task(self, paths: GuestPaths) -> Task | Command:
        worker, limits = self._config.worker, self._config.limits
        if worker.command is None:
            arguments = (paths.source, paths.output, paths.scratch, worker.environment)
            return Task(worker_function.call_in_guest, arguments, limits=limits)
        argv = [_filled(word, paths) for word in worker.command]
        variables = worker_function.environment(worker.environment, paths.scratch)
        return Command(argv, cwd=paths.scratch, env=variables, limits=limits)

    def finished(self) -> list[Finished]:
        """The attempts that have ended; does not wait."""
        assert self._session is not None
        results = self._session.results_now()
        return [Finished(self._running.pop(id(result.task)).staged, result) for result in results]

    def seconds_to_wait(self) -> float | None:
        """Seconds until ``check`` has something to do; ``None``: no attempt has a deadline."""
        first = min((one.overdue_at for one in self._running.values()), default=math.inf)
        return None if first == math.inf else max(first - time.monotonic(), 0)

    def check(self) -> None:
        """Kill a supervisor that does not end its attempts in time: a guest may have stopped it."""
        if self.seconds_to_wait() == 0 and self._session is not None and not self._session.lost:
            self._session.kill()
            again = time.monotonic() + OVERDUE_SECONDS
            self._running = {key: replace(one, overdue_at=again) for key, one in self._running.items()}

    def cancel(self) -> None:
        """End the attempts that run; ``finished`` still returns them."""
        if self._session is not None:
            self._session.cancel()


def _started(session: Session) -> Session:
    try:
        session.start()
    except BaseException:
        session.close()
        raise
    return session


def _filled(word: str, paths: GuestPaths) -> str:
    # The service makes both paths, so neither holds a placeholder.
    return word.replace("{input}", paths.source).replace("{output}", paths.output)
