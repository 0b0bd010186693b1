"""A process's claim on the CPUs, for a moment in which it must not wait for thousands of others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def urgent() -> Iterator[None]:
    """Inside, run before every ordinary process, where this one may (CAP_SYS_NICE); its children do not."""
    ordinary = os.sched_param(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, ordinary)
