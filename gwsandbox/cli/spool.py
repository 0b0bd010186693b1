"""``gwsandbox spool``: what is in a spool, and files that leave quarantine for another attempt."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict

from gwsandbox.cli.messages import OWN_FAILURE, say
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.text import shown
from gwsandbox.service import operator
from gwsandbox.service.config.config import ServiceConfig
from gwsandbox.service.config.reader import ConfigError, read_config
from gwsandbox.service.operator import FileStatus, NotInQuarantine, SpoolStatus
from gwsandbox.service.unit import adopt_state_folder

_PREFIX = "gwsandbox spool: "
_MOST_ROWS = 20
_LONGEST_LINE = 200  # characters
_SERVED = {
    True: "a service works on it",
    False: "no service works on it",
    None: "this user may not know who works on it",
}


def operate(verb: str, path: str, names: Sequence[str], *, as_json: bool) -> int:
    """Do what the operator asks for.

    Args:
        verb: ``status``, ``requeue`` or ``retry``.
        path: Path of the service's configuration file.
        names: Names of files in ``quarantine/``, or paths of them; none: all files there.
        as_json: Print the status as JSON.

    Returns:
        The exit code: 0, 1 where a file is not in quarantine, 125 where gwsandbox failed.
    """
    adopt_state_folder(path)
    try:
        config = read_config(path, imports_worker=False)
        if verb == "status":
            _print_status(config, as_json=as_json)
            return 0
        move = operator.requeue if verb == "requeue" else operator.retry
        return _move_all(config, [os.path.basename(name) for name in names], move)
    except ConfigError as error:
        for mistake in error.mistakes:
            say(mistake, prefix=_PREFIX)
    except (OSError, SandboxError, sqlite3.Error) as error:
        say(f"{error}; as root, or as the user of the service?", prefix=_PREFIX)
    return OWN_FAILURE


def _move_all(config: ServiceConfig, names: Sequence[str], move: Callable[[ServiceConfig, str], str]) -> int:
    code = 0
    for name in names or operator.quarantined_files(config):
        try:
            target = move(config, name)
        except NotInQuarantine as error:
            say(str(error), prefix=_PREFIX)
            code = 1
        else:
            print(_line(f"{name} is in incoming" + ("" if target == name else f" as {target}")))
    return code


def _print_status(config: ServiceConfig, *, as_json: bool) -> None:
    status = operator.read_status(config)
    if as_json:
        print(json.dumps(asdict(status)))
        return
    print(f"{_line(config.folders.incoming)}: {_SERVED[status.is_served]}")
    print(_incoming(status))
    print(f"work: {len(status.work)}")
    _print_files(status.work)
    print(f"done: {status.done}")
    print(f"quarantine: {len(status.quarantine)}")
    _print_files(status.quarantine)


def _incoming(status: SpoolStatus) -> str:
    text = f"incoming: {status.incoming}"
    if status.unfinished:
        text += f", and {status.unfinished} of producers that still write"
    if status.folders:
        names = ", ".join(map(_line, status.folders[:_MOST_ROWS]))
        text += f", and {len(status.folders)} folders, which the service does not take: {names}"
    return text


def _print_files(files: Sequence[FileStatus]) -> None:
    for file in files[:_MOST_ROWS]:
        words = [file.state, f"attempt {file.attempts}" if file.attempts else "", file.outcome, file.detail]
        print(_line(f"  {file.name}: {', '.join(filter(None, words)) or 'not in the job database'}"))
    if len(files) > _MOST_ROWS:
        print(f"  and {len(files) - _MOST_ROWS} more; --json shows all")


def _line(text: str) -> str:
    """``text`` as one line that a terminal shows and does not obey."""
    line = shown(text).replace("\n", "\\n").replace("\t", "\\t")
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
