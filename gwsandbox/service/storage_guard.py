"""Keeps the service alive while a disk is full, read-only or broken.

Every step that the service does with files and the job database leaves both in a state from which the same step can
be done again. So a step that fails waits and runs again, until it succeeds. The service takes no new file before the
disk works again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

from gwsandbox.service.monitoring.journal import NOTICE, WARNING, Journal

RETRY_SECONDS = 5.0  # between two tries of a failed step
FAILURES = (OSError, sqlite3.Error)
"""What a disk that fails raises."""

Step = Callable[[], None]


class StorageGuard:
    """Runs steps, and runs those again that failed.

    Args:
        journal: Gets an entry for each new failure, and one when all is well again.
        probe: Writes to the disks. It raises one of ``FAILURES`` where they do not work.
    """

    def __init__(self, journal: Journal, probe: Step) -> None:
        self._journal = journal
        self._probe = probe
        self._later: list[tuple[float, Step]] = []
        self._failed: list[Step] = []
        self._check_at = 0.0
        self._reported: set[str] = set()
        self.failure = ""
        """Why the service takes no file now; empty where the disks work."""

    def run(self, step: Step, again: Step | None = None) -> None:
        """Do a step; where it fails, do it again later.

        Args:
            step: The step.
            again: What to do instead of the step when it is tried again.
        """
        try:
            step()
        except FAILURES as error:
            self.fail(error, again or step)

    def fail(self, error: Exception, again: Step | None = None) -> None:
        """Note a failure, and take no file until the disks are known to work.

        Args:
            error: The failure.
            again: A step to do then.
        """
        self.failure = str(error)
        self._check_at = time.monotonic() + RETRY_SECONDS
        if again is not None:
            self._failed.append(again)
        if self.failure not in self._reported:
            self._reported.add(self.failure)
            self._journal.write(f"{self.failure}; nothing is lost, and the service tries it again", WARNING)

    def run_later(self, seconds: float, step: Step) -> None:
        """Do a step in ``seconds``."""
        self._later.append((time.monotonic() + seconds, step))

    def __len__(self) -> int:
        """How many steps wait to be done again."""
        return len(self._failed) + len(self._later)

    def seconds_to_wait(self) -> float | None:
        """Seconds until ``check`` has something to do; ``None``: never."""
        moments = [moment for moment, _ in self._later]
        if self.failure or self._failed:
            moments.append(self._check_at)
        return max(min(moments) - time.monotonic(), 0) if moments else None

    def check(self) -> None:
        """Do the steps that are due, and find out whether the disks work again."""
        now = time.monotonic()
        due = [step for moment, step in self._later if now >= moment]
        self._later = [(moment, step) for moment, step in self._later if now < moment]
        for step in due:
            self.run(step)
        if (self.failure or self._failed) and now >= self._check_at:
            self._try_again()

    def _try_again(self) -> None:
        failed, self._failed = self._failed, []
        for step in failed:
            self.run(step)
        self._check_at = time.monotonic() + RETRY_SECONDS
        try:
            self._probe()
        except FAILURES as error:
            self.fail(error)
            return
        self.failure = ""
        if not self._failed:
            self._reported.clear()
            self._journal.write("every step that had failed is done; the service takes files", NOTICE)
