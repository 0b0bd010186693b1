"""Metrics for Prometheus, by prometheus-client: on a port of the loopback interface, or in a text file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from gwsandbox.service.config.config import MetricsConfig
from gwsandbox.service.retry_policy import Fate
from gwsandbox.service.spool.job_database import AttemptEnd

_MIB = 1024**2
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_PLACES = {Fate.PUBLISH: "done", Fate.QUARANTINE: "quarantined", Fate.GIVE_BACK: "returned"}
_BYTES = tuple(n * _MIB for n in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096))


class Metrics:
    """Counts nothing and shows nothing: for a service without ``[metrics]``."""

    def attempt(self, end: AttemptEnd, fate: Fate) -> None:
        """An attempt has ended, and this has become of its file."""

    def reload(self, *, is_good: bool) -> None:
        """A reload took over the configuration, or refused it."""

    def write_textfile(self, *, is_last: bool = False) -> None:
        """Write the text file, if one is configured and it is time or the last time."""

    def seconds_to_wait(self) -> float | None:
        """Seconds until the text file is to be written; ``None``: never."""
        return None

    def page(self) -> bytes:
        """The page that a scrape gets."""
        return b""


class PrometheusMetrics(Metrics):
    """Counts attempts and files, and shows them to Prometheus.

    Args:
        config: Where to show the metrics.
        gauges: Values read at every scrape: by name, each with its description and a function.
    """

    def __init__(self, config: MetricsConfig, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
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

    def attempt(self, end: AttemptEnd, fate: Fate) -> None:
        self._attempts.labels(end.outcome).inc()
        if end.wall_seconds is not None:
            self._seconds.observe(end.wall_seconds)
        if end.memory_peak_bytes is not None:
            self._peaks.observe(end.memory_peak_bytes)
        if fate in _PLACES:
            self._files.labels(_PLACES[fate]).inc()

    def reload(self, *, is_good: bool) -> None:
        self._reloads.labels("good" if is_good else "refused").inc()

    def write_textfile(self, *, is_last: bool = False) -> None:
        path = self._config.textfile
        if path is None or (time.monotonic() < self._next_write and not is_last):
            return
        from prometheus_client import write_to_textfile  # noqa: PLC0415 - in an extra

        self._next_write = time.monotonic() + self._config.textfile_seconds
        with contextlib.suppress(OSError):  # a full disk stops the work itself, which reports it
            write_to_textfile(path, self._registry)

    def seconds_to_wait(self) -> float | None:
        return None if self._config.textfile is None else max(self._next_write - time.monotonic(), 0)

    def page(self) -> bytes:
        from prometheus_client import generate_latest  # noqa: PLC0415 - in an extra

        return bytes(generate_latest(self._registry))
