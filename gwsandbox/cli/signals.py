"""The signals that end a run, as an exception at one place instead of a death at any."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Self


class Stopped(BaseException):
    """A signal asks the CLI to end. Not an ``Exception``: nothing may take it for a failure.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell says it."""
        return 128 + self.number


class StopSignals:
    """Inside the block, each of ``numbers`` raises ``Stopped``, until ``cleaning_up``.

    One that was ignored when we started stays ignored: nohup and background jobs of scripts rely on it.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._restore = contextlib.ExitStack()
        self._cleaning_up = False

    def __enter__(self) -> Self:
        for number in self._numbers:
            _handle(number, self._stop, self._restore)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore.close()

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if not self._cleaning_up:
            raise Stopped(number)

    @contextlib.contextmanager
    def until_clean_up(self) -> Iterator[None]:
        """The innermost block: from its end on signals wait for nothing and interrupt nothing.

        So that a second Ctrl-C cannot leave behind what the first one was cleaning up.
        """
        try:
            yield
        finally:
            self._cleaning_up = True


@contextlib.contextmanager
def passed_by(*numbers: signal.Signals) -> Iterator[None]:
    """Inside the block, ``numbers`` do nothing to this process.

    By a handler and not by SIG_IGN, which the program that is run would inherit.
    """
    with contextlib.ExitStack() as restore:
        for number in numbers:
            _handle(number, lambda *_: None, restore)
        yield


def _handle(number: signal.Signals, handler: object, restore: contextlib.ExitStack) -> None:
    before = signal.getsignal(number)
    if before not in {signal.SIG_IGN, None}:
        signal.signal(number, handler)  # type: ignore[arg-type]
        restore.callback(signal.signal, number, before)
