"""Signals that the caller sends to its guests through the supervisor."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Mapping

from gwsandbox.linux import procfs
from gwsandbox.model.errors import SandboxError
from gwsandbox.supervisor.attempt import Attempt

_HARMLESS = frozenset({signal.SIGUSR1, signal.SIGUSR2})  # they need not end a program


class GuestSignals:
    """Sends signals to the guests that run, and pauses them.

    Args:
        attempts: Those whose time has begun, by number.
    """

    def __init__(self, attempts: Mapping[int, Attempt]) -> None:
        self._attempts = attempts
        self._paused_at: float | None = None  # on the monotonic clock

    @property
    def is_paused(self) -> bool:
        """Whether the guests are paused: their time stands still, and no guest may begin."""
        return self._paused_at is not None

    def send(self, number: int) -> bool:
        """Send a signal; whether it is settled by that: False is a signal that ends guests where none has begun."""
        if number == signal.SIGSTOP:
            self._pause()
        elif number == signal.SIGCONT:
            self._resume()
        elif not self._attempts:
            return number in _HARMLESS
        else:
            for attempt in self._attempts.values():
                procfs.signal_group(attempt.pid, number)
        return True

    def forget_pause(self) -> None:
        """The guests are about to be killed, stopped or not."""
        self._paused_at = None

    def _pause(self) -> None:
        if self._paused_at is None:
            self._paused_at = time.monotonic()
            for attempt in self._attempts.values():
                with contextlib.suppress(SandboxError, OSError):  # no cgroup.freeze before Linux 5.2
                    attempt.sandbox.pause()

    def _resume(self) -> None:
        if self._paused_at is not None:
            seconds, self._paused_at = time.monotonic() - self._paused_at, None
            for attempt in self._attempts.values():
                attempt.shift(seconds)
                with contextlib.suppress(SandboxError, OSError):
                    attempt.sandbox.resume()
