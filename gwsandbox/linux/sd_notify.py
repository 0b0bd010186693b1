"""What a service reports of itself to systemd: sd_notify(3), by its documented protocol and no library."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Manager:
    """The service manager that started this process, as its environment says.

    Args:
        address: Of the socket to notify, or ``""`` where nobody wants to know. One that starts with ``@`` is
            in the abstract namespace.
        watchdog_seconds: Seconds within which the manager expects a ping, or ``None``.
    """

    address: str = ""
    watchdog_seconds: float | None = None

    @classmethod
    def from_environment(cls) -> Manager:
        """Take the manager from the environment, out of it too: what we start is not to speak for us."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        pid = os.environ.pop("WATCHDOG_PID", "")
        watchdog = None
        if microseconds.isdigit() and int(microseconds) and pid in {"", str(os.getpid())}:
            watchdog = int(microseconds) / 1e6
        # Others than these two kinds (vsock:, of virtual machines) are not for us.
        return cls(address if address[:1] in {"/", "@"} else "", watchdog)

    def notify(self, *assignments: str) -> bool:
        """Send assignments such as ``"READY=1"`` in one message; whether there was somebody to take it."""
        if not self.address:
            return False
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # Who does not read is not waited for: the watchdog would take us for frozen.
            sender.settimeout(0.1)
            sender.sendto("\n".join(assignments).encode(errors="replace"), name)
            return True
        return False


def monotonic_assignment() -> str:
    """``MONOTONIC_USEC=…`` of this moment, which goes with ``RELOADING=1``."""
    return f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
