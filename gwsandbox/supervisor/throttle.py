"""How many guests may be alive at a time, after the kernel has said "not now"."""

from __future__ import annotations

_PAUSE = 0.05  # seconds until a further guest is tried
_TRIES = 30  # of an order that fails while nothing else is alive: 1.5 s


class Throttle:
    """Less than what was asked for, for a while, where descriptors, memory or processes are used up.

    Args:
        most: Guests that may be alive where nothing is wanting.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.allowed = most
        self.next_change: float | None = None
        self._failures = 0

    def shrink(self, working: int, now: float) -> None:
        """The kernel refused to let one more guest live beside ``working`` others, at the monotonic moment ``now``."""
        self.allowed = max(1, min(self._most, working))
        self.next_change = now + _PAUSE
        self._failures = 0 if working else self._failures + 1

    @property
    def is_hopeless(self) -> bool:
        """Whether the kernel has refused for long, while no guest was at work that could give something back."""
        return self._failures >= _TRIES

    def is_paused(self, now: float) -> bool:
        """Whether no guest is to be tried now."""
        return self.next_change is not None and now < self.next_change

    def relax(self, now: float) -> None:
        """To be called when ``next_change`` has come: allow one more."""
        if self.next_change is None or now < self.next_change:
            return
        self.next_change = None
        if self.allowed < self._most:
            self.allowed += 1
            self.next_change = now + _PAUSE

    def succeeded(self) -> None:
        """A guest was born."""
        self._failures = 0
