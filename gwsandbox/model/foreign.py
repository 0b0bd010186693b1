"""Code of a guest that runs in a process of ours: what it raises goes no further."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # below ``signal``, whose Python makes enums: 2 µs a call
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

_T = TypeVar("_T")
_CATCHABLE = [number for number in range(1, 32) if number not in {signal.SIGKILL, signal.SIGSTOP}]


class ForeignError(Exception):
    """The code raised; its exception is the ``__cause__``."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__(raised)
        self.raised = raised


def call_foreign(call: Callable[[], _T]) -> _T:
    """Run ``call``, which unpickles a value of a guest's or asks it for its text.

    A ``KeyboardInterrupt`` or ``SystemExit`` that the code raises does nothing to this process. One that a signal
    handler raises meanwhile is a true one, and is let through: each handler notes that it was called.

    Args:
        call: What to run.

    Returns:
        What ``call`` returns.

    Raises:
        ForeignError: The code raised, whatever it was.
    """
    handlers: dict[int, Any] = {}
    noted: list[int] = []

    def restore() -> None:
        for number, handler in handlers.items():
            _signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> Any:
        noted.append(number)
        restore()  # here too: what the handler raises may come at any place below
        return handlers[number](number, frame)

    try:
        _replace_handlers(handlers, note)  # what a handler raises here is no error of the code
        try:
            return call()
        except BaseException as error:
            if noted:
                raise
            raise ForeignError(error) from error
    finally:
        restore()


def _replace_handlers(handlers: dict[int, Any], note: Callable[[int, FrameType | None], Any]) -> None:
    for number in _CATCHABLE:
        handler = _signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler
            try:
                _signal.signal(number, note)
            except ValueError:  # not the main thread, in which alone handlers run
                del handlers[number]
                return
