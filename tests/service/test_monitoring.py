"""What the service reports: to systemd by sd_notify, to the journal by its native protocol, to Prometheus by its metrics."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwsandbox import SandboxError
from gwsandbox.linux.sd_notify import Manager
from gwsandbox.service.config.config import MetricsConfig
from gwsandbox.service.monitoring import journal, metrics_server
from gwsandbox.service.monitoring.metrics import Metrics, PrometheusMetrics
from gwsandbox.service.monitoring.notify import Notifier
from gwsandbox.service.retry_policy import Fate
from gwsandbox.service.spool.job_database import AttemptEnd


@contextlib.contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(10)
        yield listener


# --- systemd ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool) -> None:
    name = f"@gwsandbox-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with listening("\0" + name[1:] if is_abstract else name) as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        manager = Manager.from_environment()
        assert "NOTIFY_SOCKET" not in os.environ
        assert manager.notify("READY=1", "STATUS=ä\udcff")
        assert listener.recv(1000) == "READY=1\nSTATUS=ä?".encode()


def test_nobody_to_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not Manager.from_environment().notify("READY=1")
    assert not Manager(str(tmp_path / "none")).notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    assert Manager.from_environment().address == ""


def test_a_manager_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with listening(address):
        manager = Manager(address)
        began = time.monotonic()
        while manager.notify("STATUS=" + "x" * 1000):
            pass
        assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", "", 30.0),
        ("30000000", str(os.getpid()), 30.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("x", "", None),
        ("", "", None),
    ],
)
def test_watchdog_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Manager.from_environment().watchdog_seconds == seconds
    assert not {"WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()


def test_notifier_pings_twice_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with listening(str(tmp_path / "notify")) as listener:
        notifier = Notifier(Manager(str(tmp_path / "notify"), 10.0))

        def heard() -> list[bytes]:
            found = []
            with contextlib.suppress(TimeoutError):
                while True:
                    found.append(listener.recv(1000, socket.MSG_DONTWAIT))
            return found

        notifier.turn("idle")
        assert heard() == [b"WATCHDOG=1", b"STATUS=idle"]
        assert notifier.seconds_to_wait() == 5.0
        notifier.turn("idle")
        assert notifier.seconds_to_wait() == 5.0
        notifier.turn("busy")
        assert heard() == []
        assert notifier.seconds_to_wait() == 1.0  # news is reported, but not more than once a second
        now += 4
        assert notifier.seconds_to_wait() == 0.0
        notifier.turn("busy")
        assert heard() == [b"STATUS=busy"]
        now += 1
        notifier.turn("busy")
        assert heard() == [b"WATCHDOG=1"]
        notifier.reloading()
        notifier.ready()
        notifier.stopping(1.5)
        reloading, ready, stopping = heard()
        assert (ready, stopping) == (b"READY=1", b"STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000")
        name, _, usec = reloading.partition(b"\nMONOTONIC_USEC=")
        assert name == b"RELOADING=1"
        assert abs(int(usec) / 1e6 - time.clock_gettime(time.CLOCK_MONOTONIC)) < 60
    assert Notifier(Manager()).seconds_to_wait() is None


# --- the journal -----------------------------------------------------------------------------------------


def decoded(data: bytes) -> dict[str, bytes]:
    """As journald reads an entry."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + length], data[8 + length :]
            assert data[:1] == b"\n"
            data = data[1:]
        found[name.decode()] = value
    return found


def test_entries_say_anything() -> None:
    values: dict[str, journal.Value] = {
        "MESSAGE": "two\nlines",
        "FILE": b"-\xff\nMESSAGE=forged",
        "PEAK": 7,
        "NONE": None,
    }
    assert decoded(journal.encode(values)) == {
        "MESSAGE": b"two\nlines",
        "FILE": b"-\xff\nMESSAGE=forged",
        "PEAK": b"7",
    }
    assert len(journal.encode({"DETAIL": "x" * 10**6, "FILE": "\udcff"})) < 10_000


def test_native_where_stderr_is_the_journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    path = str(tmp_path / "socket")
    with listening(path) as listener, contextlib.closing(journal.Journal(path)) as log:
        log.write("done", FILE=b"a", OUTCOME="SUCCEEDED", PEAK=5)
        entry = decoded(listener.recv(10000))
    assert entry == {
        "MESSAGE": b"done",
        "PRIORITY": b"6",
        "SYSLOG_IDENTIFIER": b"gwsandbox-spool",
        "FILE": b"a",
        "OUTCOME": b"SUCCEEDED",
        "PEAK": b"5",
    }


@pytest.mark.parametrize("stream", ["", "1:2"])
def test_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stream: str) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    with contextlib.closing(journal.Journal()) as log:
        log.write("two\nlines \udcff", journal.WARNING, FILE="a")
    assert capfd.readouterr().err == "<4>two\\nlines \\udcff\n"


def test_lines_where_the_journal_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with contextlib.closing(journal.Journal(str(tmp_path / "none"))) as log:
        log.write("text")
    assert capfd.readouterr().err == "<6>text\n"


# --- figures ---------------------------------------------------------------------------------------------


def test_figures(tmp_path: Path) -> None:
    path = tmp_path / "x.prom"
    gauges = {"running": ("Files in work", lambda: 3.0)}
    metrics = PrometheusMetrics(MetricsConfig(textfile=str(path), textfile_seconds=1000), gauges)
    metrics.attempt(
        AttemptEnd(outcome="OUT_OF_MEMORY", wall_seconds=0.2, memory_peak_bytes=40 * 1024**2), Fate.TRY_AGAIN
    )
    metrics.attempt(AttemptEnd("SUCCEEDED"), Fate.PUBLISH)
    metrics.reload(is_good=False)
    assert metrics.seconds_to_wait() == 0
    metrics.write_textfile()
    written = path.read_text()
    assert written.encode() == metrics.page()
    for line in (
        'gwsandbox_attempts_total{outcome="OUT_OF_MEMORY"} 1.0',
        'gwsandbox_files_total{end="done"} 1.0',
        'gwsandbox_reloads_total{result="refused"} 1.0',
        'gwsandbox_attempt_seconds_bucket{le="0.25"} 1.0',
        "gwsandbox_memory_peak_bytes_sum 4.194304e+07",
        "gwsandbox_running 3.0",
    ):
        assert line in written.splitlines()
    metrics.attempt(AttemptEnd("SUCCEEDED"), Fate.PUBLISH)
    metrics.write_textfile()
    assert path.read_text() == written  # it is not time yet
    assert (metrics.seconds_to_wait() or 0) > 900
    assert os.listdir(tmp_path) == ["x.prom"]


def test_textfile_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    metrics = PrometheusMetrics(MetricsConfig(textfile=str(tmp_path / "none" / "x.prom")), {})
    metrics.write_textfile()


def test_no_figures() -> None:
    metrics = Metrics()
    metrics.attempt(AttemptEnd("FAILED"), Fate.QUARANTINE)
    metrics.write_textfile()
    assert metrics.seconds_to_wait() is None
    assert metrics.page() == b""


# --- the port --------------------------------------------------------------------------------------------


class Loop:
    """A port on its own loop."""

    def __init__(self, page: bytes = b"figures\n") -> None:
        self.selector = selectors.DefaultSelector()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            free = probe.getsockname()[1]
        self.server = metrics_server.MetricsServer(free, lambda: page, self.selector)

    def visit(self, request: bytes = b"") -> socket.socket:
        visitor = socket.create_connection(("127.0.0.1", self.server.port), timeout=10)
        visitor.sendall(request)
        return visitor

    def turn(self, times: int = 5) -> None:
        for _ in range(times):
            for key, _ in self.selector.select(0.05):
                key.data()

    def close(self) -> None:
        self.server.close()
        self.selector.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    with contextlib.closing(Loop()) as loop:
        yield loop


def everything(visitor: socket.socket) -> bytes:
    with visitor:
        return b"".join(iter(lambda: visitor.recv(65536), b""))


def test_scrape(loop: Loop) -> None:
    visitor = loop.visit(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
    loop.turn()
    visitor.sendall(b"\r\n")
    loop.turn()
    head, _, body = everything(visitor).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4")
    assert body == b"figures\n"


def test_scrape_by_a_real_client() -> None:
    """With a page that no socket takes at once."""
    page = b"x" * 10**7
    with contextlib.closing(Loop(page)) as loop:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                answer = urllib.request.urlopen(f"http://127.0.0.1:{loop.server.port}/metrics", timeout=60)
                os._exit(0 if answer.read() == page else 2)
            os._exit(1)
        while (done := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            loop.turn(1)
        assert done[1] == 0


def test_visitors_who_want_something_else(loop: Loop) -> None:
    posted = loop.visit(b"POST / HTTP/1.1\r\n\r\n")
    endless = loop.visit(b"x" * 20000)
    gone = loop.visit(b"GET / HTTP/1.1\r\n\r\n")
    gone.close()
    loop.turn(20)
    assert everything(posted).startswith(b"HTTP/1.0 405")
    with contextlib.suppress(ConnectionResetError):
        assert everything(endless) == b""
    endless.close()
    good = loop.visit(b"GET / HTTP/1.1\r\n\r\n")
    loop.turn()
    assert everything(good).endswith(b"figures\n")


def test_visitors_who_say_nothing_do_not_keep_others_out(loop: Loop) -> None:
    silent = [loop.visit() for _ in range(40)]
    loop.turn(60)
    good = loop.visit(b"GET / HTTP/1.1\r\n\r\n")
    loop.turn(20)
    assert everything(good).endswith(b"figures\n")
    for visitor in silent:
        visitor.close()


def test_port_that_is_taken(loop: Loop) -> None:
    with pytest.raises(SandboxError, match=r"listen: 127\.0\.0\.1:\d+: Address already in use"):
        metrics_server.MetricsServer(loop.server.port, lambda: b"", loop.selector)
