"""What the configuration of a running service changes, and the figures that it serves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from spools import FUNCTION, ServiceProcess, SpoolFolder, serving
from support import BEAT


@pytest.fixture
def spool(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder(tmp_path)


def test_mistakes_are_reported_before_anything_starts(spool: SpoolFolder) -> None:
    spool.configure(top='memmory = "x"\nworkers = -2')
    with ServiceProcess(spool, ready=False) as service:
        assert service.wait() == 125
    lines = service.log_text().splitlines()
    assert len(lines) == 2
    assert f"{spool.config}:5: workers: must be a whole number" in service.log_text()
    assert f"{spool.config}:6: memmory is not known" in service.log_text()
    assert not spool.database.exists()


def check(spool: SpoolFolder, *options: str) -> tuple[int, str]:
    """The exit code of ``serve --check``, and what it says."""
    command = [sys.executable, "-m", "gwsandbox", "serve", "--check", *options, str(spool.config)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    return done.returncode, done.stderr


def test_check(spool: SpoolFolder) -> None:
    before = spool.tree()
    spool.configure()
    assert check(spool) == (0, "")
    assert spool.tree() == before
    spool.configure(top="workers = -2")
    assert check(spool)[0] == 125
    assert not spool.database.exists()


def test_check_of_a_reload(spool: SpoolFolder) -> None:
    """What ExecReload= does first, so that a reload that is refused fails."""
    spool.configure()
    assert check(spool, "--running", "1")[0] == 125  # nobody works there
    with serving(spool) as service:
        pid = str(service.process.pid)
        spool.configure(top="workers = 1\nattempts = 7")
        assert check(spool, "--running", pid) == (0, "")
        spool.configure(top=f'ledger = "{spool.root}/other"')
        code, text = check(spool, "--running", pid)
        assert (code, "ledger cannot change while the service runs" in text) == (125, True)
        spool.configure(top="workers = -1")
        assert "workers: must be a whole number" in check(spool, "--running", pid)[1]
        spool.configure(tables=f'[folders]\nwork = "{spool.root}/other"')
        assert "the folders cannot change" in check(spool, "--running", pid)[1]
        spool.configure()
        assert check(spool, "--running", "1")[0] == 125
    assert check(spool)[0] == 0


def test_check_finds_a_spool_that_cannot_be_written(spool: SpoolFolder) -> None:
    spool.configure(tables='[folders]\ndone = "/proc/self"')
    code, text = check(spool)
    assert (code, "cannot write /proc/self" in text) == (125, True)
    spool.configure(tables='[folders]\ndone = "/proc/none/inside"')
    code, text = check(spool)
    assert (code, "cannot write /proc;" in text) == (125, True)


def test_reload(spool: SpoolFolder) -> None:
    """New limits hold for what is taken then; what runs keeps its own."""
    spool.configure(top="workers = 2", tables="[limits]\nwall_seconds = 1000")
    with serving(spool) as service:
        spool.put("before", "hang")
        service.wait_for("STATUS=1 in work")
        spool.configure(top="workers = 2\nattempts = 1", tables=f"[limits]\nwall_seconds = {0.5 * BEAT}")
        service.signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in service.wait_for("RELOADING=1")
        service.wait_for("READY=1")
        spool.put("after", "hang")
        spool.wait_until(lambda: "after" in spool.names("quarantine"))
        assert spool.outcomes("after") == ["TIMED_OUT"]
        assert spool.outcomes("before") == [None]
        limits = dict(spool.rows("SELECT CAST(name AS TEXT), limits FROM attempts JOIN jobs ON job = id"))
        assert json.loads(limits["before"])["wall_seconds"] == 1000
        assert json.loads(limits["after"])["wall_seconds"] == 0.5 * BEAT
        service.signal(signal.SIGTERM)
        service.wait_for("STOPPING=1")  # or the second may come while the first is pending, and be the same
        service.signal(signal.SIGTERM)
        service.wait()


def test_bad_reload_is_refused_as_a_whole(spool: SpoolFolder) -> None:
    spool.configure()
    with serving(spool) as service:
        spool.configure(top=f'workers = 1\nattempts = -1\nledger = "{spool.root}/other"', tables="[limits]\nmemry = 1")
        service.signal(signal.SIGHUP)
        service.wait_for("RELOADING=1")
        service.wait_for("READY=1")
        assert f"<3>{spool.config}:6: attempts: must be a whole number" in service.log_text()
        assert f"<3>{spool.config}:14: limits.memry is not known; is it memory?" in service.log_text()
        assert "stays as it was" in service.log_text()
        spool.put("crash", "crash")
        spool.wait_until(spool.is_quiet)
    assert spool.outcomes("crash") == ["CRASHED"] * 3


def test_reload_to_another_worker(spool: SpoolFolder) -> None:
    spool.configure(FUNCTION)
    with serving(spool) as service:
        spool.put("slow", "slow by the function")
        service.wait_for("STATUS=1 in work")
        spool.configure('command = ["cp", "{input}", "{output}"]\noutput_suffix = ".copy"', top="workers = 1")
        service.signal(signal.SIGHUP)
        service.wait_for("READY=1")
        for n in range(3):
            spool.put(f"{n}.txt", "by the program")
        spool.wait_until(spool.is_quiet)
    assert spool.names("done") == {"slow", "0.copy", "1.copy", "2.copy"}
    assert (spool.root / "done" / "slow").read_text() == "SLOW BY THE FUNCTION"
    assert (spool.root / "done" / "0.copy").read_text() == "by the program"


def test_no_file_is_taken_while_memory_is_short(spool: SpoolFolder) -> None:
    spool.configure(top='memory_reserve = "1PiB"')
    spool.put("a", "content")
    with serving(spool) as service:
        service.wait_for("STATUS=0 in work, 1 to take, 0 to try again, memory is short: no file is taken")
        assert spool.names("incoming") == {"a"}
        spool.configure()
        service.signal(signal.SIGHUP)
        spool.wait_until(spool.is_quiet)
    assert spool.names("done") == {"a"}


def test_metrics_port(spool: SpoolFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    textfile = spool.root / "x.prom"
    spool.configure(tables=f'[metrics]\nport = {free}\ntextfile = "{textfile}"\n')
    spool.put("a", "content")
    spool.put("b", "raise")
    with serving(spool):
        spool.wait_until(spool.is_quiet)
        with urllib.request.urlopen(f"http://127.0.0.1:{free}/metrics", timeout=60) as answer:
            page = answer.read().decode()
    for line in ('gwsandbox_files_total{end="done"} 1.0', 'gwsandbox_attempts_total{outcome="FAILED"} 1.0'):
        assert line in page
    assert "gwsandbox_memory_short 0.0" in page
    assert "gwsandbox_running 0.0" in textfile.read_text()


def test_watchdog_is_pinged_while_work_goes_on(spool: SpoolFolder) -> None:
    spool.configure()
    with serving(spool, env={"WATCHDOG_USEC": "200000"}) as service:
        spool.put("slow", "slow")
        service.wait_for("STATUS=1 in work")
        for _ in range(3):
            service.wait_for("WATCHDOG=1")
        service.signal(signal.SIGSTOP)
        try:
            service._socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:  # what it said before
                    service._socket.recv(65536)
            service._socket.settimeout(0.5)
            with pytest.raises(TimeoutError):
                service._socket.recv(65536)
        finally:
            service.signal(signal.SIGCONT)
            service._socket.settimeout(None)
        service.wait_for("WATCHDOG=1")
