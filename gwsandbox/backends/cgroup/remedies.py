"""What gives a process a cgroup of its own, by where it runs: the remedies of errors and of ``gwsandbox doctor``."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
from collections.abc import Iterator

from gwsandbox.linux import procfs, systemd_scope

MOUNT = "/sys/fs/cgroup"

# Each is made by one container manager: Podman, Docker, systemd-nspawn with and without systemd inside.
_CONTAINER_MARKS = ("/run/.containerenv", "/.dockerenv", "/run/systemd/container", "/run/host/container-manager")


def is_container() -> bool:
    """Whether this is a container, whose kernel and boot are its host's."""
    return any(map(os.path.exists, _CONTAINER_MARKS))


def upward(path: str) -> Iterator[str]:
    """A cgroup and those above it, up to the mount."""
    yield path
    while path not in {MOUNT, "/", ""}:
        path = os.path.dirname(path)
        yield path


def own_unit(path: str) -> str:
    """The cgroup of the innermost service or scope that holds the cgroup ``path``; "" where there is none."""
    return next((above for above in upward(path) if above.endswith((".service", ".scope"))), "")


def own_service(path: str) -> str:
    """The name of the service that holds the cgroup ``path`` and is run as this user; "" where there is none.

    Under su or in a cron job a process is in another user's service, and ``Delegate=`` gives that other user a cgroup.
    """
    unit = own_unit(path)
    if not unit.endswith(".service"):
        return ""
    pids = sorted(pid for folder, _, _ in os.walk(unit) for pid in _processes(folder))
    with contextlib.suppress(OSError):
        if pids and os.stat(f"/proc/{pids[0]}").st_uid != os.geteuid():
            return ""
    return os.path.basename(unit)


def _processes(folder: str) -> list[int]:
    try:
        with open(f"{folder}/cgroup.procs", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split() if pid != "0"]
    except OSError:
        return []


def is_read_only() -> bool:
    """Whether the cgroup file system can only be read here."""
    try:
        return bool(os.statvfs(MOUNT).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def delegation(own: str) -> str:
    """How the process in the cgroup ``own`` gets one that is delegated, in one sentence."""
    if not os.path.isdir("/run/systemd/system"):
        return "gwsandbox doctor says what mends it"
    if procfs.is_in_cgroup_namespace() and not is_container():  # ProtectControlGroups=private or strict hides its name
        if is_read_only():
            return "set ProtectControlGroups=no and Delegate=yes in the unit"
        return "set Delegate=yes, and no DelegateSubgroup=, in the unit"
    if service := own_service(own):
        settings = f"{_writable()} and Delegate=yes" if is_read_only() else "Delegate=yes"
        user = " --user" if "/user@" in own else ""
        return f"set {settings} in {service}: systemctl{user} edit {shlex.quote(service)}"
    if os.geteuid() and not os.path.exists(systemd_scope.bus_path()):
        return f"as root: {manager()}"
    return f"start it under: {scope()}"


def _writable() -> str:
    """The setting of this process's service with which the cgroup file system can be written."""
    return "ProtectControlGroups=no" if systemd_scope.protects_cgroups() else f"ReadWritePaths={MOUNT}"


def scope() -> str:
    """The command that runs another in a delegated scope."""
    # Under su, sudo and cron the environment lacks the address of the user's bus, which systemd-run needs.
    runtime = os.path.dirname(systemd_scope.bus_path())
    user = f"XDG_RUNTIME_DIR={runtime} systemd-run --user" if os.geteuid() else "systemd-run"
    return f"{user} --scope -p Delegate=yes -- COMMAND"


def manager() -> str:
    """The command with which root gives this user a systemd manager."""
    uid = os.geteuid()
    try:
        return f"loginctl enable-linger {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"loginctl enable-linger {uid}"


def unified() -> str:
    """How the host gets cgroup version 2, in one sentence."""
    whose = "the host of this container" if is_container() else "this host"
    return f"boot {whose} with systemd.unified_cgroup_hierarchy=1, or use backend='rlimit'"
