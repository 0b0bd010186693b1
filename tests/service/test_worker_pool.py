"""The worker pool under supervisors that guests have stopped: no attempt runs without an end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from spools import SpoolFolder
from support import BEAT, SLOW, BackendName

from gwsandbox.linux import procfs
from gwsandbox.service import worker_pool
from gwsandbox.service.config.reader import read_config
from gwsandbox.service.service import Service


def turn_until(service: Service, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60 * SLOW
    while not condition():
        assert time.monotonic() < deadline
        service._turn()


@pytest.mark.parametrize("who", ["reaper", "supervisor", "all"])
def test_a_stopped_supervisor_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: BackendName, who: str
) -> None:
    monkeypatch.setattr(worker_pool, "OVERDUE_SECONDS", 0.5 * BEAT)
    spool = SpoolFolder(tmp_path)
    limits = f"[limits]\nwall_seconds = {BEAT}"
    spool.configure(top=f'backend = "{backend}"\nattempts = 1\nworkers = 1', tables=limits)
    with Service(str(spool.config), read_config(str(spool.config))) as service:
        service._start_supervisor()
        service._dispatcher.recover()
        spool.put("hang", "hang")
        turn_until(service, lambda: len(service._pool) == 1)
        descendants = list(procfs.tree(os.getpid()))[1:]
        stopped = {"reaper": descendants[:1], "supervisor": descendants[1:2], "all": descendants}[who]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        spool.put("good", "content")
        turn_until(service, lambda: spool.results() == {"done": {"good"}, "quarantine": {"hang"}})
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
