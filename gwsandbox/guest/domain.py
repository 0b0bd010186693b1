"""The Landlock domain that each guest enters: its ruleset, made once in the zygote, and what it holds here.

Kernels have more or less of Landlock, and not always what they claim. So a child enters a domain and tries, and what it
is refused is what holds.
"""

from __future__ import annotations

import functools
import glob
import itertools
import os
import socket
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gwsandbox.linux import landlock, namespaces
from gwsandbox.model.hardening import ENFORCED

BUSES = (
    *("/run/dbus", "/run/systemd/journal", "/run/systemd/private", "/run/systemd/notify"),
    *("/run/user/*/bus", "/run/user/*/systemd", "/run/user/*/docker.sock", "/run/user/*/podman"),
    *("/run/docker.sock", "/run/containerd", "/run/podman", "/run/crio"),
)
"""Where programs take orders from whoever connects: patterns, of folders and of sockets."""

_BUS_SOCKETS = ("/run/dbus/system_bus_socket", "/run/user/*/bus", "/run/docker.sock")
_CONTROL_FILE = "/proc/sys/kernel/core_pattern"
_WRITES = landlock.WRITE_FILE | landlock.TRUNCATE | landlock.MAKE_DIR | landlock.REMOVE_DIR
_NAMED_SOCKETS_SINCE = 9
_NOT_ALL_OF_FILES = (
    "partly: Landlock shuts what other files hold; their names and sizes stay open, and the modes and times of the "
    "user's own"
)


class Domain(NamedTuple):
    """What a guest is to enter.

    Args:
        ruleset: Descriptor, or -1 where there is no Landlock.
        why_none: Why there is none.
        held: Whether each mechanism of those that it is for holds.
    """

    ruleset: int
    why_none: str
    held: dict[str, str]


class Files(NamedTuple):
    """Which files a guest keeps.

    Args:
        given: Rights over files by path.
        taken: The rights that are taken elsewhere.
    """

    given: dict[str, int]
    taken: int


Attempts = dict[str, list[Callable[[], object]]]


def existing(patterns: tuple[str, ...]) -> list[str]:
    """The paths of some patterns that there are, links left out."""
    return [path for pattern in patterns for path in glob.glob(pattern) if not os.path.islink(path)]


def bus_sockets() -> list[str]:
    """Buses that can be connected to, as far as can be seen; to be asked for before they are hidden."""
    return [path for path in existing(_BUS_SOCKETS) if stat.S_ISSOCK(os.stat(path).st_mode)]


def prepare_domain(
    buses: list[str], why_no_view: str, files: Files | None, hidden: tuple[str, ...] | None = None
) -> Domain:
    """Make the ruleset, and try what it holds.

    Args:
        buses: Sockets that no guest is to connect to.
        why_no_view: Why the control files and the buses are not shut by a view of mounts; "" where they are.
        files: What is left, where only some files are given.
        hidden: Paths of the machine's that are not in this process's root folder, where that is one of its own.
    """
    version, why = landlock.version(), landlock.why_none() or ""
    if version == 1:
        why = "the first version of Landlock would forbid to move files between folders"
    ruleset = -1
    if not why:
        try:
            ruleset = _make_ruleset(version, files, has_view=not why_no_view)
        except OSError as error:
            why = str(error)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("")  # an abstract name that the kernel chooses
        server.listen()
        attempts = _attempts(server.getsockname(), buses)
        if hidden is not None:
            attempts["files"] = [functools.partial(os.stat, path) for path in hidden[:2]]
        elif files is not None:
            attempts["files"] = [_list_root if files.taken & landlock.READ_DIR else _make_a_file]
        shut = _shut(ruleset, attempts)
    held = {name: ENFORCED if shut[name] else f"not: {_reason(name, version, why, why_no_view)}" for name in shut}
    if held.get("files") == ENFORCED and hidden is None:
        held["files"] = _NOT_ALL_OF_FILES
    elif held.get("files") == ENFORCED and ruleset < 0:
        held["files"] = f"partly: what its standard streams lead to can be opened a second time, as {why}"
    return Domain(ruleset, why, held)


def _make_ruleset(version: int, files: Files | None, *, has_view: bool) -> int:
    scopes = landlock.SCOPE_SIGNAL | landlock.SCOPE_ABSTRACT_UNIX_SOCKET if version >= landlock.SCOPES_SINCE else 0
    known = landlock.file_rights(version)
    if files is not None:
        taken = files.taken & known
        rules = {path: rights & taken for path, rights in files.given.items()}
        return landlock.make_ruleset(rules, files=taken, scopes=scopes)
    if has_view:
        if scopes:
            return landlock.make_ruleset({}, scopes=scopes)
        # A ruleset must take something: to make block devices. All forbid to move files where they do not allow it.
        rules = {"/": landlock.REFER}
        return landlock.make_ruleset(rules, files=landlock.MAKE_BLOCK | landlock.REFER)
    writes = (_WRITES | landlock.REFER) & known
    cgroups = {mount.path for mount in namespaces.mounts() if mount.kind in {"cgroup", "cgroup2"}}
    rules = dict.fromkeys(landlock.all_but({"/proc", "/sys", *cgroups}), writes)
    if resolve := landlock.RESOLVE_UNIX & known:
        for path in landlock.all_but(set(existing(BUSES))):
            rules[path] = rules.get(path, 0) | resolve
    return landlock.make_ruleset(rules, files=writes | resolve, scopes=scopes)


def _attempts(server: bytes | str, buses: list[str]) -> Attempts:
    return {
        "signals": [lambda: os.kill(os.getppid(), 0)],
        "abstract_sockets": [functools.partial(_connect, server)],
        "control_files": [functools.partial(_open_to_write, path) for path in _control_files()],
        "buses": [functools.partial(_connect, path) for path in buses[:3]],
    }


def _connect(address: bytes | str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)


def _open_to_write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))


def _list_root() -> None:
    os.listdir("/")


def _make_a_file() -> None:
    """In a folder that everybody may write to, or else it is refused by others; it has no name."""
    os.close(os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR, 0o600))  # noqa: S108 - nothing is left there


def _control_files() -> Iterator[str]:
    """One of the machine's, and one by which this process's own cgroup is controlled."""
    yield _CONTROL_FILE
    unified = next((mount.path for mount in namespaces.mounts() if mount.kind == "cgroup2"), None)
    if unified is not None:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            own = next((line[3:].strip() for line in file if line.startswith("0::")), "/")
        yield f"{unified}{own}/cgroup.procs"


def _shut(ruleset: int, attempts: Attempts) -> dict[str, bool]:
    """For each name, whether a process in the domain is refused all that it attempts."""
    answers = iter(landlock.refused(ruleset, [attempt for group in attempts.values() for attempt in group]))
    return {name: all(list(itertools.islice(answers, len(group)))) for name, group in attempts.items()}


def _reason(name: str, version: int, why: str, why_no_view: str) -> str:
    if name in {"signals", "abstract_sockets"}:
        if version >= landlock.SCOPES_SINCE:
            return why or "the kernel's Landlock claims to confine them, and does not"
        return why or f"the kernel's Landlock is of version {version}, and 6 confines them (Linux 6.12)"
    if name == "buses" and not why and version < _NAMED_SOCKETS_SINCE:
        why = f"the kernel's Landlock is of version {version}, and 9 confines named sockets (Linux 7.1)"
    return "; ".join(filter(None, (f"no view of mounts of its own ({why_no_view})" if why_no_view else "", why)))
