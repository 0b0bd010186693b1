"""What the live display of ``gwsandbox map`` shows of an input whose task runs."""

from __future__ import annotations

from typing import NamedTuple

from gwsandbox.client.running import RunningTask
from gwsandbox.model.limits import Limits


class RunningRow(NamedTuple):
    """An input whose task runs.

    Args:
        path: Of the input.
        task: That works on it.
        limits: Of that.
    """

    path: str
    task: RunningTask
    limits: Limits
