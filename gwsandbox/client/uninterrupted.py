"""Steps that Ctrl-C cannot cut in two: a call of C, and what becomes of the thing that it gives.

Ctrl-C, or a signal handler that raises, can come between any two bytecodes. What a system call gives would be lost
between the call and the bytecode that stores it, so both are one call of C here.
"""

from __future__ import annotations

import opcode
import os
from collections import deque
from collections.abc import Callable
from itertools import starmap
from types import FunctionType
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])
_RESUME = opcode.opmap.get("RESUME", -1)
_LOOKS_FOR_NO_SIGNALS = 2  # operand of RESUME: as after "yield from" (Include/internal/pycore_opcode_utils.h)


def store(place: deque[Any], function: Callable[..., Any], *args: Any) -> None:
    """``place.append(function(*args))``, with no bytecode between the call and the append.

    ``function`` must be one of C, or Ctrl-C may come inside of it.
    """
    place.extend(starmap(function, (args,)))


def close_all(descriptors: deque[int]) -> None:
    """Close each, and none twice: it leaves its place and is closed in one call of C."""
    while descriptors:
        deque(map(os.close, starmap(descriptors.popleft, ((),))), maxlen=0)


def enters_uninterrupted(function: _F) -> _F:
    """Decorate a function that begins with ``try``: no signal handler runs in it before that.

    CPython looks for signals at RESUME, with which the code of each function begins, and not again before the first
    call or jump back. With another operand it does not look there. Where the code begins in another way it stays as
    it is, and a signal that comes in that very moment finds the function not begun.
    """
    assert isinstance(function, FunctionType)
    code = bytearray(function.__code__.co_code)
    at = next((at for at in range(0, len(code), 2) if code[at] == _RESUME), None)
    if at is not None and code[at + 1] == 0:
        code[at + 1] = _LOOKS_FOR_NO_SIGNALS
        function.__code__ = function.__code__.replace(co_code=bytes(code))
    return function
