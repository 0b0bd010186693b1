"""Steps that Ctrl-C cannot cut in two: a call of C, and what becomes of the thing that it gives.

Ctrl-C, or a signal handler that raises, can come between any two bytecodes. What a system call gives would be lost
between the call and the bytecode that stores it, so both are one call of C here.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from itertools import starmap
from typing import Any


def store(place: deque[Any], function: Callable[..., Any], *args: Any) -> None:
    """``place.append(function(*args))``, with no bytecode between the call and the append.

    ``function`` must be one of C, or Ctrl-C may come inside of it.
    """
    place.extend(starmap(function, (args,)))


def close_all(descriptors: deque[int]) -> None:
    """Close each, and none twice: it leaves its place and is closed in one call of C."""
    while descriptors:
        deque(map(os.close, starmap(descriptors.popleft, ((),))), maxlen=0)
