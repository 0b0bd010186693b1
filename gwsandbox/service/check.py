"""Finds out whether the service could write what its configuration names: ``gwsandbox serve --check``.

A check as root says nothing about the service's own user. So for the configuration of an installed unit, root checks
what that unit and its user may write.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator

from gwsandbox.model.errors import SandboxError
from gwsandbox.service.config.config import ServiceConfig
from gwsandbox.service.spool import folders
from gwsandbox.service.unit import Unit

_FOLDERS = ("work", "incoming", "done", "quarantine")


def find_mistakes(config: ServiceConfig, unit: Unit | None = None) -> list[str]:
    """What the service could not write; nothing is left behind.

    Args:
        config: Its configuration.
        unit: The unit that runs it; ``None``: this user does.
    """
    if unit is None:
        return list(_of_this_user(config))
    found = list(_outside_of(unit, config))
    if not found and unit.user and os.geteuid() == 0:
        found = _as_user(unit.user, config)
    return found


def _paths(config: ServiceConfig) -> dict[str, str]:
    """Each folder that the service writes, by the key that names it."""
    found = {f"folders.{name}": getattr(config.folders, name) for name in _FOLDERS}
    found["ledger"] = os.path.dirname(config.database)
    if config.metrics.textfile is not None:
        found["metrics.textfile"] = os.path.dirname(config.metrics.textfile)
    return found


def _outside_of(unit: Unit, config: ServiceConfig) -> Iterator[str]:
    if unit.writable is None:
        return
    for key, path in _paths(config).items():
        if not any(os.path.commonpath((path, folder)) == folder for folder in unit.writable):
            remedy = f"`systemctl edit {unit.name}` and add ReadWritePaths={path} below [Service]"
            yield f"{key}: the unit {unit.name} cannot write {path}; {remedy}, or choose a folder that it can write"


def _of_this_user(config: ServiceConfig) -> Iterator[str]:
    paths = _paths(config)
    missing = False
    for key, path in paths.items():
        there = _existing(path)
        missing |= there != path
        if not _can_write(there):
            yield f"{key}: {_user_name()} cannot write {there}; give this user the right, or choose another folder"
            return
    if not missing:
        try:
            folders.prepare({name: getattr(config.folders, name) for name in _FOLDERS})
        except SandboxError as error:
            yield str(error)


def _can_write(folder: str) -> bool:
    """Try it: rights alone do not say it of a read-only file system, or of one such as /proc."""
    probe = f"{folder}/.gwsandbox-check-{os.getpid()}"
    try:
        os.mkdir(probe)
        os.rmdir(probe)
    except OSError:
        return False
    return True


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def _existing(path: str) -> str:
    """The path, or the nearest folder above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _as_user(name: str, config: ServiceConfig) -> list[str]:
    """What ``_of_this_user`` finds in a process of that user. Folders that do not exist are the unit's to make."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        return [f"there is no user {name}, under which the unit runs; run systemd-sysusers"]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.initgroups(name, user.pw_gid)
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
            if all(os.path.isdir(path) for path in _paths(config).values()):
                os.write(writer, "\n".join(_of_this_user(config)).encode(errors="surrogateescape"))
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="surrogateescape") as answer:
        found = answer.read().splitlines()
    os.waitpid(pid, 0)
    return found
