"""Reads the configuration file, and finds all its mistakes at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits
from gwsandbox.service.config import checks
from gwsandbox.service.config.config import (
    DEFAULT_HARDENING,
    DEFAULT_LIMITS,
    FixedConfig,
    FolderConfig,
    MetricsConfig,
    ServiceConfig,
    WorkerConfig,
)
from gwsandbox.service.config.lines import KeyPath, find_lines, line_of
from gwsandbox.service.worker_function import load_function

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
        "environment": checks.variables,
    },
    "limits": {field.name: checks.limit(field.name) for field in fields(Limits)},
    "hardening": {
        "level": checks.one_of("standard", "off", "strict"),
        "readable": checks.hardening("readable"),
        "writable": checks.hardening("writable"),
        "user": checks.hardening("user"),
        "temporary": checks.hardening("temporary"),
        "network": checks.hardening("network"),
        "syscalls": checks.hardening("syscalls"),
        "require": checks.hardening("require"),
    },
    "metrics": {"port": checks.port, "textfile": checks.textfile, "textfile_seconds": checks.seconds},
}


_FIXED = {"folders": "spool", "database": "ledger", "metrics": "metrics"}
"""The fields that cannot change while a service runs, each with its key."""


class ConfigError(Exception):
    """The configuration has mistakes; ``mistakes`` has a line for each, with its place and its remedy."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def read_config(path: str, *, running: FixedConfig | None = None, imports_worker: bool = True) -> ServiceConfig:
    """Read a configuration file.

    Args:
        path: Path of the file.
        running: What the service that reloads it cannot change.
        imports_worker: Whether to import the worker function, and so to find its mistakes too.

    Raises:
        ConfigError: The file cannot be read, or has mistakes.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (ValueError, RecursionError) as error:  # brackets in brackets without end
        raise ConfigError([f"{path}: is not TOML: {error}"]) from error
    reader = _ConfigReader(path, find_lines(text), imports_worker=imports_worker)
    config = reader.config(values)
    if config is not None and running is not None:
        reader.compare(config.fixed, running)
    if config is None or reader.mistakes:
        raise ConfigError([text for _, text in sorted(reader.mistakes)])
    return config


class _ConfigReader:
    """Takes values out of tables, and collects their mistakes, each with its line."""

    def __init__(self, path: str, lines: Mapping[KeyPath, int], *, imports_worker: bool) -> None:
        self.mistakes: list[tuple[int, str]] = []
        self._path = path
        self._lines = lines
        self._imports_worker = imports_worker

    def config(self, values: dict[str, Any]) -> ServiceConfig | None:
        """The configuration; ``None`` where its spool or worker is missing or wrong."""
        tables = {name: self._table(values.get(name, {}), name) for name in _TABLES}
        top = self._checked((), {name: value for name, value in values.items() if name not in _TABLES}, _TOP)
        spool = top.pop("spool", None)
        worker = self._worker(values.get("worker"), tables["worker"])
        folders = self._folders(tables["folders"], spool, has_spool="spool" in values)
        self._look_for_prometheus(tables["metrics"])
        if worker is None or folders is None:
            return None
        return ServiceConfig(
            folders=folders,
            database=os.path.join(_state_folder() or spool, top.pop("ledger", "ledger.sqlite3")),
            worker=worker,
            limits=DEFAULT_LIMITS.overridden_by(Limits(**tables["limits"])),
            hardening=self._hardening(tables["hardening"], worker, folders),
            metrics=MetricsConfig(**tables["metrics"]),
            **top,
        )

    def compare(self, new: FixedConfig, running: FixedConfig) -> None:
        """Collect the changes that a running service cannot take over."""
        for name, key in _FIXED.items():
            if getattr(new, name) != getattr(running, name):
                place = key if (key,) in self._lines else "spool"
                table = key if name == "database" else name
                self._note((place,), f"{table} cannot change while the service runs; restart it or change that back")

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

    def _folders(self, found: dict[str, str], spool: str | None, *, has_spool: bool) -> FolderConfig | None:
        names = ("incoming", "work", "done", "quarantine")
        if spool is None:
            if not has_spool:
                self._note((), 'spool is missing; write for example spool = "/var/spool/gwsandbox/NAME"')
            return None
        paths = {name: os.path.normpath(os.path.join(spool, found.get(name, name))) for name in names}
        for name in names:
            others = [other for other in names if other != name and _is_in(paths[name], paths[other])]
            if others:
                self._note(("folders", name), f"folders.{name} lies in folders.{others[0]}; give each its own")
        return FolderConfig(**paths)

    def _worker(self, table: object, found: dict[str, Any]) -> WorkerConfig | None:
        ways = [name for name in ("function", "command") if isinstance(table, dict) and name in table]
        if len(ways) == 2:
            self._note(("worker", "command"), "worker.command and worker.function are both there; leave one")
        elif not ways:
            self._note(("worker",), "worker.command or worker.function is missing, the work on a file; add one")
        if not found.keys() & set(ways):
            return None
        worker = WorkerConfig(**found)
        if worker.function is not None and self._imports_worker:
            try:
                load_function(worker.function, worker.path)
            except ValueError as error:
                self._note(("worker", "function"), f"worker.function: {error}")
        return worker

    def _hardening(self, found: dict[str, Any], worker: WorkerConfig, folders: FolderConfig) -> Hardening:
        level = found.pop("level", "standard")
        if level != "strict":
            return Hardening.off(results="plain", **found) if level == "off" else replace(DEFAULT_HARDENING, **found)
        if worker.function is not None:
            remedy = "write command in place of function"
            self._note(
                ("worker",), f"worker: a function is a fork of the service, which strict does not allow; {remedy}"
            )
        readable, writable = (found.pop(name, None) or () for name in ("readable", "writable"))
        return Hardening.strict(readable=readable, writable=(*writable, folders.work), **found)

    def _look_for_prometheus(self, found: dict[str, Any]) -> None:
        if found.keys() & {"port", "textfile"} and find_spec("prometheus_client") is None:
            remedy = "pip install 'gwsandbox[metrics]', or take the table out"
            self._note(("metrics",), f"metrics: the package prometheus-client is missing; {remedy}")


def _is_in(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == folder


def _state_folder() -> str:
    """The first folder that systemd made for ``StateDirectory=``; empty where it made none."""
    return os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
