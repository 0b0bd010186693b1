"""The sandboxes: one supervisor that serves file after file; a new one where it is lost or out of date."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

from gwsandbox.backends.choose import choose_backend
from gwsandbox.client.session import Session
from gwsandbox.model.errors import CgroupError, DegradedWarning
from gwsandbox.model.limits import Limits
from gwsandbox.model.options import RunOptions
from gwsandbox.model.result import TaskResult
from gwsandbox.model.task import Command, Task
from gwsandbox.service import call
from gwsandbox.service.config.config import Config
from gwsandbox.service.spool.job_database import Job
from gwsandbox.service.spool.spool import Paths


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt that has ended."""

    job: Job
    result: TaskResult


class Crew:
    """Works on up to ``slots`` files at a time.

    Its guests read what strangers wrote and are not trusted: they hold no descriptor of the service's, and
    nothing that they send is unpickled.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._session: Session | None = None
        self._jobs: dict[int, tuple[Job, Task | Command]] = {}  # by identity: equal tasks are not the same
        self._last_number = 0
        self._is_outdated = False

    # --- the supervisor -----------------------------------------------------------------------------

    def start(self) -> list[str]:
        """Start a supervisor; warnings for people, of limits that are held less than fully.

        Raises:
            SandboxError: It cannot be started.
        """
        function = self._config.worker.function
        call.choose(None if function is None else call.load(function, self._config.worker.path))
        options = RunOptions(max_workers=self.slots, limits=Limits(), start_method="fork", trusted=False)
        self._is_outdated = False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DegradedWarning)
            backend = choose_backend(self._config.backend, stacklevel=1)
        told = [str(warning.message) for warning in caught]
        try:
            self._session = Session(backend, options, {})
        except CgroupError as error:
            if self._config.backend != "auto":
                raise
            told.append(f"limits are held by rlimits and sampling, as cgroup v2 cannot be used: {error}")
            self._session = Session(choose_backend("rlimit", stacklevel=1), options, {})
        return told

    def close(self) -> None:
        """Cancel what runs, and come back when nothing of it is left."""
        if self._session is not None:
            session, self._session = self._session, None
            session.close()

    def reconfigure(self, config: Config) -> None:
        """Hold to a new configuration: at once where that is possible, else with the next supervisor."""
        before, self._config = self._config, config
        self._is_outdated |= any(
            getattr(before, name) != getattr(config, name) for name in ("worker", "workers", "backend")
        )

    @property
    def needs_another(self) -> bool:
        """Whether no work can be given to this supervisor any more: it is out of date, or gone."""
        return self._is_outdated or self._session is None or self._session.lost

    @property
    def slots(self) -> int:
        """How many files may be in work at a time."""
        return self._config.workers or len(os.sched_getaffinity(0))

    def __len__(self) -> int:
        """How many are."""
        return len(self._jobs)

    def fileno(self) -> int:
        """Can be read when ``finished`` has something."""
        assert self._session is not None
        return self._session.fileno()

    # --- work ---------------------------------------------------------------------------------------

    def work_on(self, job: Job, paths: Paths) -> None:
        """Begin an attempt."""
        assert self._session is not None
        task = self._task(paths)
        self._jobs[id(task)] = (job, task)
        self._last_number += 1
        self._session.submit(self._last_number, task)
        self._session.flush()

    def _task(self, paths: Paths) -> Task | Command:
        worker, limits = self._config.worker, self._config.limits
        if worker.command is None:
            return Task(call.in_guest, (paths.source, paths.output, paths.scratch), limits=limits)
        argv = [_filled(word, paths) for word in worker.command]
        return Command(argv, cwd=paths.scratch, env={**os.environ, "TMPDIR": paths.scratch}, limits=limits)

    def finished(self) -> list[Finished]:
        """The attempts that have ended; does not wait where ``fileno`` can be read."""
        assert self._session is not None
        results = self._session.results_now()
        return [Finished(self._jobs.pop(id(result.task))[0], result) for result in results]

    def cancel(self) -> None:
        """End what runs; it still comes out of ``finished``."""
        if self._session is not None:
            self._session.cancel()


def _filled(word: str, paths: Paths) -> str:
    # Neither path can hold a placeholder: both are of our own making.
    return word.replace("{input}", paths.source).replace("{output}", paths.output)
