"""Figures for Prometheus, by prometheus-client: on a port of the loopback interface, or in a text file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from gwsandbox.service.config.config import Metrics
from gwsandbox.service.spool.job_database import Ending

_MIB = 1024**2
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_BYTES = tuple(n * _MIB for n in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096))


class Figures:
    """Counts nothing and shows nothing: for a service that was asked for no figures."""

    def attempt(self, ending: Ending) -> None:
        """An attempt has ended."""

    def file(self, end: str) -> None:
        """A file has come to rest: ``done``, ``quarantined`` or ``returned``."""

    def reload(self, *, is_good: bool) -> None:
        """The configuration was read anew, or refused."""

    def write_textfile(self, *, is_last: bool = False) -> None:
        """Write the text file, where there is one, and it is time or the last time."""

    def seconds_to_wait(self) -> float | None:
        """Until it is time; ``None``: never."""
        return None

    def page(self) -> bytes:
        """What a scrape gets."""
        return b""


class PrometheusFigures(Figures):
    """The real ones.

    Args:
        config: Where they are shown.
        gauges: What is asked for at every scrape: by name, with what it is and how to know.
    """

    def __init__(self, config: Metrics, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: PLC0415 - in an extra

        self._config = config
        self._next_write = 0.0
        registry = self._registry = CollectorRegistry()
        self._attempts = Counter(
            "gwsandbox_attempts", "Attempts that have ended, by outcome", ["outcome"], registry=registry
        )
        self._files = Counter("gwsandbox_files", "Files that have come to rest, by where", ["end"], registry=registry)
        self._reloads = Counter("gwsandbox_reloads", "Reloads, by result", ["result"], registry=registry)
        self._seconds = Histogram(
            "gwsandbox_attempt_seconds", "Wall-clock time of attempts", buckets=_SECONDS, registry=registry
        )
        self._peaks = Histogram(
            "gwsandbox_memory_peak_bytes", "Memory peak of attempts", buckets=_BYTES, registry=registry
        )
        for name, (text, ask) in gauges.items():
            Gauge(f"gwsandbox_{name}", text, registry=registry).set_function(ask)

    def attempt(self, ending: Ending) -> None:
        self._attempts.labels(ending.outcome).inc()
        if ending.wall_seconds is not None:
            self._seconds.observe(ending.wall_seconds)
        if ending.memory_peak_bytes is not None:
            self._peaks.observe(ending.memory_peak_bytes)

    def file(self, end: str) -> None:
        self._files.labels(end).inc()

    def reload(self, *, is_good: bool) -> None:
        self._reloads.labels("good" if is_good else "refused").inc()

    def write_textfile(self, *, is_last: bool = False) -> None:
        path = self._config.textfile
        if path is None or (time.monotonic() < self._next_write and not is_last):
            return
        from prometheus_client import write_to_textfile  # noqa: PLC0415 - in an extra

        self._next_write = time.monotonic() + self._config.textfile_seconds
        with contextlib.suppress(OSError):  # a full disk stops work itself, and says so, where it matters
            write_to_textfile(path, self._registry)

    def seconds_to_wait(self) -> float | None:
        return None if self._config.textfile is None else max(self._next_write - time.monotonic(), 0)

    def page(self) -> bytes:
        from prometheus_client import generate_latest  # noqa: PLC0415 - in an extra

        return bytes(generate_latest(self._registry))
