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

``Config`` and the classes below it tell every key and its default.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, Literal

from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Outcome
from gwsandbox.service import call
from gwsandbox.service.config import checks
from gwsandbox.service.config.lines import KeyPath, find_lines, line_of

RETRIED = frozenset(
    {
        Outcome.OUT_OF_MEMORY,
        Outcome.TIMED_OUT,
        Outcome.CPU_TIME_EXCEEDED,
        Outcome.CRASHED,
        Outcome.KILLED,
    }
)
"""What may end otherwise the next time. A worker that refuses a file (FAILED) does so again."""

DEFAULT_LIMITS = Limits(memory="1GiB", wall_seconds="5m", pids=256, output="1MiB")


class ConfigError(Exception):
    """The configuration has mistakes; ``mistakes`` is a line for each, with the place and what to do."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """``[folders]``. Relative ones are below ``spool``. All of them must be on one file system.

    Args:
        incoming: Where files to work on are put.
        work: Nobody's but ours: what is being worked on.
        done: Where outputs go.
        quarantine: Where files go that have none, with a report beside each.
    """

    incoming: str
    work: str
    done: str
    quarantine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """``[worker]``. What is done with a file: exactly one of ``function`` and ``command``.

    Args:
        function: ``MODULE:FUNCTION``, called with the paths of the input and of the output to be written.
        command: A program and its arguments, in which ``{input}`` and ``{output}`` stand for those paths.
        path: Folders in which Python looks for the function's module first.
        output_suffix: What the output's name ends with in place of the input's suffix, such as ``".pdf"``.
    """

    function: str | None = None
    command: tuple[str, ...] | None = None
    path: tuple[str, ...] = ()
    output_suffix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """``[metrics]``. Figures for Prometheus: on a port of the loopback interface, in a file, both or neither.

    Args:
        port: Of 127.0.0.1.
        textfile: For the textfile collector of node_exporter; written anew as a whole.
        textfile_seconds: How often.
    """

    port: int | None = None
    textfile: str | None = None
    textfile_seconds: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole of it.

    Args:
        folders: See there.
        ledger: The SQLite file in which every attempt is a row; by default ``ledger.sqlite3`` in
            ``$STATE_DIRECTORY`` where systemd sets that, else in ``spool``.
        worker: See there.
        limits: ``[limits]``, of each attempt; what is not said is as in ``DEFAULT_LIMITS``, 0 is no limit.
        metrics: See there.
        workers: Sandboxes at a time; 0: one for each CPU.
        backend: What holds the limits: ``auto``, ``cgroup`` or ``rlimit``.
        attempts: How many attempts may end in an outcome of ``retry`` before the file is quarantined.
        retry: Names of outcomes after which a file is tried again; after others it is quarantined at once.
        retry_delay_seconds: How long it waits for that.
        interruptions: How often the service or the sandbox itself may end under a file until it is
            quarantined.
        settle_seconds: How long a file whose end nobody saw must not have changed to count as whole.
        drain_seconds: How long files in work may take to end when the service is to stop.
        memory_reserve: Bytes of available memory below which no new file is taken; 0: never mind.
    """

    folders: Folders
    ledger: str
    worker: Worker
    limits: Limits = DEFAULT_LIMITS
    metrics: Metrics = Metrics()
    workers: int = 0
    backend: Literal["auto", "cgroup", "rlimit"] = "auto"
    attempts: int = 3
    retry: frozenset[Outcome] = RETRIED
    retry_delay_seconds: float = 5.0
    interruptions: int = 10
    settle_seconds: float = 10.0
    drain_seconds: float = 60.0
    memory_reserve: int = 256 * 1024**2


_TOP: dict[str, checks.Check] = {
    "spool": checks.absolute,
    "ledger": checks.text,
    "workers": checks.count_from(0),
    "backend": checks.one_of("auto", "cgroup", "rlimit"),
    "attempts": checks.count_from(1),
    "retry": checks.outcomes,
    "retry_delay_seconds": checks.seconds,
    "interruptions": checks.count_from(1),
    "settle_seconds": checks.seconds,
    "drain_seconds": checks.seconds,
    "memory_reserve": checks.size,
}
_TABLES: dict[str, dict[str, checks.Check]] = {
    "folders": dict.fromkeys(("incoming", "work", "done", "quarantine"), checks.text),
    "worker": {
        "function": checks.function_name,
        "command": checks.command,
        "path": checks.paths,
        "output_suffix": checks.suffix,
    },
    "limits": {field.name: checks.limit(field.name) for field in fields(Limits)},
    "metrics": {"port": checks.port, "textfile": checks.textfile, "textfile_seconds": checks.seconds},
}


_FIXED = {"folders": "spool", "ledger": "ledger", "metrics": "metrics"}
"""What cannot change while a service runs, and the key that says it."""


def read(path: str, *, running: Config | None = None) -> Config:
    """Read a configuration.

    Args:
        path: Of the file.
        running: What the service has that is to take this one over.

    Raises:
        ConfigError: It cannot be read, or has mistakes.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigError([f"{path}: is not TOML: {error}"]) from error
    reader = _Reader(path, find_lines(text))
    config = reader.config(values)
    if config is not None and running is not None:
        reader.compare(config, running)
    if config is None or reader.mistakes:
        raise ConfigError([text for _, text in sorted(reader.mistakes)])
    return config


class _Reader:
    """Takes values out of tables, and notes what is wrong with them, each mistake with its line."""

    def __init__(self, path: str, lines: Mapping[KeyPath, int]) -> None:
        self.mistakes: list[tuple[int, str]] = []
        self._path = path
        self._lines = lines

    def config(self, values: dict[str, Any]) -> Config | None:
        """All of it; ``None`` where what it needs most is not said."""
        tables = {name: self._table(values.get(name, {}), name) for name in _TABLES}
        top = self._checked((), {name: value for name, value in values.items() if name not in _TABLES}, _TOP)
        spool = top.pop("spool", None)
        worker = self._worker(values.get("worker"), tables["worker"])
        folders = self._folders(tables["folders"], spool, is_said="spool" in values)
        self._look_for_prometheus(tables["metrics"])
        if worker is None or folders is None:
            return None
        return Config(
            folders=folders,
            ledger=os.path.join(_state_folder() or spool, top.pop("ledger", "ledger.sqlite3")),
            worker=worker,
            limits=DEFAULT_LIMITS.overridden_by(Limits(**tables["limits"])),
            metrics=Metrics(**tables["metrics"]),
            **top,
        )

    def compare(self, new: Config, running: Config) -> None:
        """Note what cannot be taken over."""
        for name, key in _FIXED.items():
            if getattr(new, name) != getattr(running, name):
                place = key if (key,) in self._lines else "spool"
                self._note((place,), f"{name} cannot change while the service runs; restart it or change that back")

    def _note(self, key: KeyPath, text: str) -> None:
        line = line_of(self._lines, key)
        self.mistakes.append((line, f"{self._path}:{line}: {text}"))

    def _table(self, found: object, name: str) -> dict[str, Any]:
        if not isinstance(found, dict):
            self._note((name,), f"{name} must be a table: write [{name}], and its keys on the lines below")
            return {}
        return self._checked((name,), found, _TABLES[name])

    def _checked(self, table: KeyPath, values: dict[str, Any], known: dict[str, checks.Check]) -> dict[str, Any]:
        found = {}
        for name, value in values.items():
            key = (*table, name)
            if name not in known:
                near = get_close_matches(name, known, 1)
                remedy = f"is it {near[0]}?" if near else f"there are {', '.join(known)}"
                self._note(key, f"{'.'.join(key)} is not known; {remedy}")
                continue
            try:
                found[name] = known[name](value)
            except (TypeError, ValueError) as error:
                self._note(key, f"{'.'.join(key)}: {error}")
        return found

    def _folders(self, said: dict[str, str], spool: str | None, *, is_said: bool) -> Folders | None:
        names = ("incoming", "work", "done", "quarantine")
        if spool is None:
            if not is_said:
                self._note((), 'spool is missing; write for example spool = "/var/spool/gwsandbox/NAME"')
            return None
        paths = {name: os.path.normpath(os.path.join(spool, said.get(name, name))) for name in names}
        for name in names:
            others = [other for other in names if other != name and _is_in(paths[name], paths[other])]
            if others:
                self._note(("folders", name), f"folders.{name} lies in folders.{others[0]}; give each its own")
        return Folders(**paths)

    def _worker(self, table: object, said: dict[str, Any]) -> Worker | None:
        ways = [name for name in ("function", "command") if isinstance(table, dict) and name in table]
        if len(ways) == 2:
            self._note(("worker", "command"), "worker.command and worker.function are both there; leave one")
        elif not ways:
            self._note(("worker",), "worker.command or worker.function is missing, the work on a file; add one")
        if not said.keys() & set(ways):
            return None
        worker = Worker(**said)
        if worker.function is not None:
            try:
                call.load(worker.function, worker.path)
            except ValueError as error:
                self._note(("worker", "function"), f"worker.function: {error}")
        return worker

    def _look_for_prometheus(self, said: dict[str, Any]) -> None:
        if said.keys() & {"port", "textfile"} and find_spec("prometheus_client") is None:
            remedy = "pip install 'gwsandbox[metrics]', or take the table out"
            self._note(("metrics",), f"metrics: the package prometheus-client is missing; {remedy}")


def _is_in(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == folder


def _state_folder() -> str:
    """The first that systemd made for ``StateDirectory=``."""
    return os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
