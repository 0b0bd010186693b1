"""What the service's loop reports to systemd, and when: readiness, status, and the watchdog's ping."""

from __future__ import annotations

import time

from gwsandbox.linux.sd_notify import Manager, monotonic_assignment

_STATUS_SECONDS = 1.0  # between two texts: a thousand files a second need no thousand texts


class Notifier:
    """Reports to the service manager. Only the loop calls it, so the watchdog notices a loop that stands still.

    Args:
        manager: The service manager.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        # Half of it, as sd_watchdog_enabled(3) advises.
        self._interval = None if manager.watchdog_seconds is None else manager.watchdog_seconds / 2
        self._next_ping = 0.0
        self._next_status = 0.0
        self._status = ""
        self._is_behind = False  # whether the last reported status is not the present one

    def ready(self) -> None:
        """The service works, or works again after ``reloading``."""
        self._manager.notify("READY=1")

    def reloading(self) -> None:
        """The service reads its configuration again."""
        self._manager.notify("RELOADING=1", monotonic_assignment())

    def stopping(self, seconds: float) -> None:
        """The service drains, for up to ``seconds``."""
        self._manager.notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def turn(self, status: str) -> None:
        """The loop has turned: ping the watchdog and report the status, where it is time."""
        now = time.monotonic()
        if self._interval is not None and now >= self._next_ping:
            self._next_ping = now + self._interval
            self._manager.notify("WATCHDOG=1")
        self._is_behind = status != self._status
        if self._is_behind and now >= self._next_status:
            self._status, self._next_status, self._is_behind = status, now + _STATUS_SECONDS, False
            self._manager.notify(f"STATUS={status}")

    def seconds_to_wait(self) -> float | None:
        """Seconds until ``turn`` must be called; ``None``: never."""
        moments = [self._next_status] if self._is_behind else []
        if self._interval is not None:
            moments.append(self._next_ping)
        return max(min(moments) - time.monotonic(), 0) if moments else None
