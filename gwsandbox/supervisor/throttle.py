"""How many guests may be alive at a time, after the kernel has said "not now"."""

from __future__ import annotations

_PAUSE = 0.05  # seconds until a guest is tried again, where no other is at work that could give something back
_TRIES = 30  # of that kind, one after the other: 1.5 s
_FIRST_RELAX, _LONGEST_RELAX = 0.25, 8.0  # seconds until one guest more is tried, doubled each time that it fails


class Throttle:
    """Less than what was asked for, for a while, where descriptors, memory or processes are used up.

    Moments are those of the monotonic clock, in seconds.

    Args:
        most: Guests that may be alive where nothing is wanting.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.allowed = most
        self._paused_until: float | None = None
        self._relax_at: float | None = None
        self._relax_after = _FIRST_RELAX
        self._failures = 0

    @property
    def next_change(self) -> float | None:
        """When ``relax`` is to be called; ``None`` where nothing is held back."""
        return self._paused_until if self._paused_until is not None else self._relax_at

    def shrink(self, working: int, now: float) -> None:
        """The kernel refused to let one more guest live beside ``working`` others."""
        self._relax_after = min(self._relax_after * 2, _LONGEST_RELAX) if self.allowed < self._most else _FIRST_RELAX
        self.allowed = max(1, min(self._most, working))
        self._relax_at = now + self._relax_after
        if working:
            self._failures = 0
        else:
            self._failures += 1
            self._paused_until = now + _PAUSE

    @property
    def is_hopeless(self) -> bool:
        """Whether the kernel has refused for long, while no guest was at work that could give something back."""
        return self._failures >= _TRIES

    @property
    def is_paused(self) -> bool:
        """Whether no guest is to be tried now."""
        return self._paused_until is not None

    def relax(self, now: float) -> None:
        """To be called when ``next_change`` has come."""
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
        if self._relax_at is not None and now >= self._relax_at:
            self.allowed += 1
            self._relax_at = now + self._relax_after if self.allowed < self._most else None

    def succeeded(self) -> None:
        """A guest begins its task."""
        self._failures = 0
