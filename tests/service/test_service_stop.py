"""``gwsandbox serve`` stopped, killed and started again: no file is lost or doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from spools import COMMAND, FUNCTION, ServiceProcess, SpoolFolder, serving, wait_for_lock
from support import BEAT, SLOW, BackendName, Watched, times

from gwsandbox.linux import procfs


@pytest.fixture
def spool(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder(tmp_path)


def test_drain(spool: SpoolFolder) -> None:
    """What runs may end, what takes too long goes back, and nothing else is taken."""
    spool.configure(top=f"workers = 2\ndrain_seconds = {3 * BEAT}")
    with ServiceProcess(spool) as service:
        spool.put("slow", "slow")
        spool.put("hang", "hang")
        spool.wait_until(lambda: len(spool.names("work")) == 2)
        spool.put("never", "content")
        service.signal(signal.SIGTERM)
        message = service.wait_for("STOPPING=1")
        assert f"EXTEND_TIMEOUT_USEC={int((3 * BEAT + 30) * 1e6)}" in message
        spool.put("later", "content")
        assert service.wait() == 0
    assert spool.results() == {"done": {"slow"}, "quarantine": set()}
    assert spool.names("incoming") == {"hang", "never", "later"}
    assert spool.names("work") == set()
    assert spool.outcomes("hang") == ["CANCELLED"]
    spool.configure(tables=f"[limits]\nwall_seconds = {0.5 * BEAT}")
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    assert spool.outcomes("hang") == ["CANCELLED", "TIMED_OUT", "TIMED_OUT", "TIMED_OUT"]


def test_second_signal_does_not_wait(spool: SpoolFolder) -> None:
    spool.configure(top="drain_seconds = 3000")
    with ServiceProcess(spool) as service:
        spool.put("hang", "hang")
        spool.wait_until(lambda: len(spool.names("work")) == 1)
        service.signal(signal.SIGINT)
        service.wait_for("STOPPING=1")
        service.signal(signal.SIGINT)
        assert service.wait() == 0
    assert spool.names("incoming") == {"hang"}


def test_what_waits_for_another_attempt_goes_back_too(spool: SpoolFolder) -> None:
    spool.configure(top="retry_delay_seconds = 3000")
    spool.put("crash", "crash")
    for _ in range(2):
        with serving(spool) as service:
            service.wait_for("STATUS=0 in work, 0 to take, 1 to try again")
        assert spool.names("incoming") == {"crash"}
    spool.configure()
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    assert spool.outcomes("crash") == ["CRASHED"] * 3


@pytest.mark.parametrize("worker", [FUNCTION, COMMAND], ids=["function", "command"])
def test_killed_again_and_again(spool: SpoolFolder, backend: BackendName, worker: str) -> None:
    spool.configure(worker, top=f'backend = "{backend}"\ninterruptions = 1000')
    number = times(60, at_least=20)
    for n in range(number):
        spool.put(f"{n}.txt", f"content {n}" if n % 5 else "raise")
    rounds = 0
    while not spool.is_quiet():
        rounds += 1
        with ServiceProcess(spool) as service:
            settled = len(spool.names("done")) + len(spool.names("quarantine"))
            spool.wait_until(
                lambda before=settled: (  # type: ignore[misc]
                    spool.is_quiet() or len(spool.names("done")) + len(spool.names("quarantine")) >= before + 4
                )
            )
            service.kill()
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    assert rounds > 3
    assert spool.results() == {
        "done": {f"{n}.txt" for n in range(number) if n % 5},
        "quarantine": {f"{n}.txt" for n in range(number) if n % 5 == 0},
    }
    for n in range(number):
        outcomes = spool.outcomes(f"{n}.txt")
        assert outcomes.count("SUCCEEDED" if n % 5 else "FAILED") == 1
        assert set(outcomes) <= {"SUCCEEDED", "FAILED", "INTERRUPTED"}
        if n % 5:
            assert (spool.root / "done" / f"{n}.txt").read_text() == f"CONTENT {n}"


def test_a_file_that_kills_the_service_is_not_tried_for_ever(spool: SpoolFolder) -> None:
    spool.configure(top="interruptions = 3")
    spool.put("hang", "hang")
    for _ in range(3):
        with ServiceProcess(spool) as service:
            spool.wait_until(lambda: len(spool.names("work")) == 1)
            service.wait_for("STATUS=1 in work")
            service.kill()
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    assert spool.outcomes("hang") == ["INTERRUPTED"] * 3
    assert spool.results()["quarantine"] == {"hang"}


def test_nothing_lives_on_when_the_service_is_killed(spool: SpoolFolder, backend: BackendName) -> None:
    spool.configure(top=f'backend = "{backend}"')
    spool.put("hang", "hang")
    with ServiceProcess(spool) as service:
        service.wait_for("STATUS=1 in work")
        with Watched(*list(procfs.tree(service.process.pid))[1:]) as descendants:
            service.kill()
            assert descendants.living_after(20 * SLOW) == set()
        wait_for_lock(spool.root)


def test_one_service_per_spool(spool: SpoolFolder, tmp_path: Path) -> None:
    spool.configure()
    with serving(spool):
        command = [sys.executable, "-m", "gwsandbox", "serve", str(spool.config)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        second = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert second.returncode == 125
    assert "another gwsandbox serve works on this spool" in second.stderr
