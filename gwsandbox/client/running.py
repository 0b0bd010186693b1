"""What a session knows of a task whose time has begun."""

from __future__ import annotations

from typing import NamedTuple

from gwsandbox.model.task import Command, Task


class RunningTask(NamedTuple):
    """A task whose time has begun.

    Args:
        task: What runs.
        pid: Of its guest's first process.
        started: Moment of the monotonic clock, in seconds.
    """

    task: Task | Command
    pid: int
    started: float
