"""Signals as something that a loop can wait for, next to its other descriptors."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Self


class Signals:
    """While the block lasts, these signals only make ``fileno`` readable, and ``take`` tells which came."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._before: dict[signal.Signals, object] = {}
        self._reader = self._writer = -1

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in self._numbers:
            self._before[number] = signal.signal(number, _do_nothing)
        # Without this, a signal that comes just before the loop starts to wait would not wake it.
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
        """Those that came since the last call, in their order."""
        try:
            return [number for number in os.read(self._reader, 4096) if number in self._numbers]
        except BlockingIOError:
            return []


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler, for without one a signal is not told of but acts."""
