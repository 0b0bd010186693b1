"""``gwsandbox serve``: the spool service."""

from __future__ import annotations

import json
import os
import sqlite3

from gwsandbox.cli.messages import OWN_FAILURE, say
from gwsandbox.model.errors import SandboxError
from gwsandbox.service.config.config import FixedConfig, FolderConfig, MetricsConfig, ServiceConfig
from gwsandbox.service.config.reader import ConfigError, read_config
from gwsandbox.service.spool.folders import read_holder

_PREFIX = "gwsandbox serve: "


def serve_spool(path: str) -> int:
    """Serve until a signal says to stop.

    Args:
        path: Path of the configuration file.

    Returns:
        The exit code.
    """
    from gwsandbox.service.service import Service

    try:
        with Service(path, read_config(path)) as service:
            service.run()
    except ConfigError as error:
        return _fail(error.mistakes)
    except (SandboxError, OSError, sqlite3.Error) as error:
        return _fail([f"ended: {error}; nothing is lost, the next start goes on from here"])
    return 0


def check_config(path: str, running: int | None) -> int:
    """Look for mistakes in a configuration, and for folders that the service could not write.

    Args:
        path: Path of the configuration file.
        running: Pid of the service that is to take it over; ``None``: a service that is to start.

    Returns:
        The exit code.
    """
    from gwsandbox.service.check import find_mistakes
    from gwsandbox.service.unit import adopt_state_folder

    unit = adopt_state_folder(path) if running is None and os.geteuid() == 0 else None
    try:
        config = read_config(path)
        if running is None:
            return _fail([f"{path}: {mistake}" for mistake in find_mistakes(config, unit)])
        read_config(path, running=_fixed(config, running), imports_worker=False)
    except ConfigError as error:
        return _fail(error.mistakes)
    except (SandboxError, OSError) as error:
        return _fail([str(error)])
    return 0


def _fixed(config: ServiceConfig, running: int) -> FixedConfig:
    """What the running service cannot change, as it says beside its lock."""
    work = config.folders.work
    holder = json.loads(read_holder(work) or "{}")
    if holder.get("pid") != running:
        remedy = "the folders cannot change while it runs; restart it, or change that back"
        raise SandboxError("find the running service", path=work, value=f"pid {running}", remedy=remedy)
    return FixedConfig(
        folders=FolderConfig(**holder["folders"]),
        database=holder["database"],
        metrics=MetricsConfig(**holder["metrics"]),
    )


def _fail(messages: list[str]) -> int:
    for message in messages:
        say(message, prefix=_PREFIX)
    return OWN_FAILURE if messages else 0
