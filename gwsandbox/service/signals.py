"""Signals as a descriptor that an event loop can wait for."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Self


class Signals:
    """Inside of the block these signals only make ``fileno`` readable, and ``take`` returns them."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._before: dict[signal.Signals, object] = {}
        self._reader = self._writer = -1

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in self._numbers:
            self._before[number] = signal.signal(number, _do_nothing)
        # The pipe also wakes a loop that starts to wait just after the signal.
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        return self._reader

    def take(self) -> list[int]:
        """The signals that came since the last call, in their order."""
        try:
            return [number for number in os.read(self._reader, 4096) if number in self._numbers]
        except BlockingIOError:
            return []


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """Do nothing. Without a handler the signal would have its default effect."""
