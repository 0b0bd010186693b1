"""``gwsandbox serve``: the spool service."""

from __future__ import annotations

import sqlite3

from gwsandbox.cli.messages import OWN_FAILURE, say
from gwsandbox.model.errors import SandboxError
from gwsandbox.service.config.reader import ConfigError, read_config


def serve_spool(path: str, *, check: bool) -> int:
    """Serve until a signal says to stop.

    Args:
        path: Path of the configuration file.
        check: Only read the configuration.

    Returns:
        The exit code.
    """
    try:
        config = read_config(path)
    except ConfigError as error:
        for mistake in error.mistakes:
            say(mistake, prefix="gwsandbox serve: ")
        return OWN_FAILURE
    if check:
        return 0
    from gwsandbox.service.service import Service

    try:
        with Service(path, config) as service:
            service.run()
    except (SandboxError, OSError, sqlite3.Error) as error:
        say(f"ended: {error}; nothing is lost, the next start goes on from here", prefix="gwsandbox serve: ")
        return OWN_FAILURE
    return 0
