"""The service's configuration: a TOML file, read into frozen dataclasses. All its mistakes are found at once.

::

    spool = "/var/spool/gwsandbox/invoices"     # incoming/, work/, done/ and quarantine/ are in it
    workers = 2                                 # sandboxes at a time; 0: one for each CPU
    attempts = 3                                # of a file that kills its sandbox, until it is quarantined

    [worker]
    command = ["/usr/bin/convert", "{input}", "{output}"]      # or: function = "package.module:function"

    [limits]                                    # the fields of gwsandbox.Limits
    memory = "512MiB"
    wall_seconds = "30s"

``ServiceConfig`` and the classes above it list every key and its default. ``reader.py`` reads the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Outcome

RETRIED = frozenset(
    {
        Outcome.OUT_OF_MEMORY,
        Outcome.TIMED_OUT,
        Outcome.CPU_TIME_EXCEEDED,
        Outcome.CRASHED,
        Outcome.KILLED,
    }
)
"""Outcomes that the next attempt may not have. A worker that refuses a file (FAILED) refuses it again."""

DEFAULT_HARDENING = Hardening.standard(results="plain")
DEFAULT_LIMITS = Limits(memory="1GiB", wall_seconds="5m", pids=256, output="1MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderConfig:
    """``[folders]``. Relative paths start at ``spool``. All folders must be on one file system.

    Args:
        incoming: Producers put files here.
        work: Private to the service: the files that it works on.
        done: The service puts outputs here.
        quarantine: The service puts files without an output here, and a report beside each.
    """

    incoming: str
    work: str
    done: str
    quarantine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """``[worker]``. The work on a file: exactly one of ``function`` and ``command``.

    Args:
        function: ``MODULE:FUNCTION``, called with two paths: the input, and the output to write.
        command: A program and its arguments, in which ``{input}`` and ``{output}`` stand for those paths.
        path: Folders that Python searches first for the function's module.
        output_suffix: Replaces the input's suffix in the output's name, such as ``".pdf"``.
        environment: Names of variables that the worker gets with the values that the service has. Besides these it
            gets ``PATH`` and ``LANG``, and its scratch folder as ``HOME`` and ``TMPDIR``.
    """

    function: str | None = None
    command: tuple[str, ...] | None = None
    path: tuple[str, ...] = ()
    output_suffix: str | None = None
    environment: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """``[metrics]``. Metrics for Prometheus: on a port of the loopback interface, in a file, both or neither.

    Args:
        port: TCP port of 127.0.0.1.
        textfile: File for the textfile collector of node_exporter. The service replaces it as a whole.
        textfile_seconds: Seconds between two writes of it.
    """

    port: int | None = None
    textfile: str | None = None
    textfile_seconds: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedConfig:
    """The part of a configuration that cannot change while the service runs."""

    folders: FolderConfig
    database: str
    metrics: MetricsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """The whole configuration.

    Args:
        folders: ``[folders]``.
        database: Key ``ledger``: the path of the job database. By default ``ledger.sqlite3`` in
            ``$STATE_DIRECTORY`` where systemd sets that, else in ``spool``.
        worker: ``[worker]``.
        limits: ``[limits]`` of each attempt. ``DEFAULT_LIMITS`` fill in what is missing; 0 is no limit.
        hardening: ``[hardening]``: ``level`` is ``standard``, ``strict`` or ``off``; the other keys are fields of
            ``gwsandbox.Hardening``. With ``strict`` a worker may write to the folder ``work`` too.
        metrics: ``[metrics]``.
        workers: Sandboxes at a time; 0: one for each CPU.
        backend: What holds the limits: ``auto``, ``cgroup`` or ``rlimit``.
        attempts: How many attempts may end in an outcome of ``retry`` before the file is quarantined.
        retry: Outcomes after which a file is tried again. After others it is quarantined at once.
        retry_delay_seconds: Seconds between two attempts on a file.
        interruptions: How often the service or the sandbox itself may end under a file before the file is
            quarantined.
        settle_seconds: Seconds for which a file must not change to count as whole, where the kernel did not
            announce its end.
        drain_seconds: Seconds that running attempts get to end when the service stops.
        memory_reserve: The service takes no file while less memory is available; bytes, 0: no reserve.
    """

    folders: FolderConfig
    database: str
    worker: WorkerConfig
    limits: Limits = DEFAULT_LIMITS
    hardening: Hardening = DEFAULT_HARDENING
    metrics: MetricsConfig = MetricsConfig()
    workers: int = 0
    backend: Literal["auto", "cgroup", "rlimit"] = "auto"
    attempts: int = 3
    retry: frozenset[Outcome] = RETRIED
    retry_delay_seconds: float = 5.0
    interruptions: int = 10
    settle_seconds: float = 10.0
    drain_seconds: float = 60.0
    memory_reserve: int = 256 * 1024**2

    @property
    def fixed(self) -> FixedConfig:
        """The part that cannot change while the service runs."""
        return FixedConfig(folders=self.folders, database=self.database, metrics=self.metrics)
