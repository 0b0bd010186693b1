"""Random numbers of NumPy: each guest draws its own, as it does of ``random``, which CPython reseeds in each fork."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable

_SEED = struct.Struct("=4I")  # 128 bits, so that no two tasks have the same


def reseeder() -> Callable[[], None] | None:
    """In the zygote, once: what gives NumPy's global generator a new state, or ``None`` where there is none.

    To be called before each fork, for the guest would pay page faults for it. What it does takes 10 µs.
    """
    module = sys.modules.get("numpy.random")
    try:
        lock, seed = module.mtrand._rand._bit_generator.lock, module.seed  # type: ignore[union-attr]
        is_free = lock.acquire(blocking=False)
        if not is_free:  # a thread of the caller holds it, which this process does not have
            return None
        lock.release()
        seed(_SEED.unpack(os.urandom(_SEED.size)))
    except Exception:  # noqa: BLE001 - not imported, of another make, or replaced by the caller
        return None
    return lambda: seed(_SEED.unpack(os.urandom(_SEED.size)))
