"""The installed unit that a configuration belongs to, as systemd describes it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

_CONFIG = re.compile(r"/etc/gwsandbox/([A-Za-z0-9_.@]+)\.toml")
_PROPERTIES = ("LoadState", "User", "ProtectSystem", "ReadWritePaths", "StateDirectory")
_SYSTEMCTL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Unit:
    """The installed unit of a configuration.

    Args:
        name: Its name.
        user: Its user; empty for root.
        writable: The folders that it may write; ``None``: all that its user may.
        state_folder: Its ``$STATE_DIRECTORY``.
    """

    name: str
    user: str
    writable: tuple[str, ...] | None
    state_folder: str


def find_unit(path: str) -> Unit | None:
    """The unit whose configuration is the file ``path``; ``None`` where none is installed."""
    found = _CONFIG.fullmatch(os.path.abspath(path))
    if found is None or shutil.which("systemctl") is None:
        return None
    name = f"gwsandbox-spool@{found[1]}.service"
    argv = ["systemctl", "show", *(f"--property={key}" for key in _PROPERTIES), name]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        text = subprocess.run(argv, capture_output=True, text=True, timeout=_SYSTEMCTL_SECONDS, check=True).stdout
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        if values.get("LoadState") == "loaded":
            return _unit(name, values)
    return None


def _unit(name: str, values: dict[str, str]) -> Unit:
    state = [f"/var/lib/{folder}" for folder in values.get("StateDirectory", "").split()]
    writable = None
    if values.get("ProtectSystem") == "strict":
        writable = (*(path.lstrip("-+") for path in values.get("ReadWritePaths", "").split()), *state)
    return Unit(name, values.get("User", ""), writable, state[0] if state else "")


def adopt_state_folder(path: str) -> Unit | None:
    """Set ``$STATE_DIRECTORY`` as the unit of a configuration has it, so that defaults mean the same as there.

    Returns:
        The unit; ``None`` where none is installed.
    """
    unit = find_unit(path)
    if unit is not None and unit.state_folder and "STATE_DIRECTORY" not in os.environ:
        os.environ["STATE_DIRECTORY"] = unit.state_folder
    return unit
