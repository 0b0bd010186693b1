"""What ``gwsandbox doctor`` says of the host: cgroups, swap, kernel; and what mends what is missing."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Literal

from gwsandbox import scope
from gwsandbox.cgroup.root import MOUNT, WANTED, find_root
from gwsandbox.errors import CgroupError

CgroupVersion = Literal["unified", "hybrid", "legacy", "none"]

# Where a file appeared; the controller without which it is missing anyway.
_FILES = {
    "memory.peak": ("memory", "5.19"),
    "memory.swap.peak": ("memory", "6.5"),
    "memory.events.local": ("memory", "5.2"),
    "pids.peak": ("pids", "6.1"),
    "cgroup.kill": ("", "5.14"),
}


@dataclass(slots=True)
class Host:
    """Facts by name, in the order of being shown; and advice, each a sentence and the lines that do it."""

    facts: dict[str, str] = field(default_factory=dict)
    advice: list[tuple[str, list[str]]] = field(default_factory=list)

    def advise(self, why: str, *lines: str) -> None:
        self.advice.append((why, list(lines)))


def look(refused: CgroupError | None) -> Host:
    """Look at this host.

    Args:
        refused: Why the cgroup backend cannot be had, where it cannot.
    """
    host = Host()
    version = cgroup_version(_read("/proc/self/mounts"))
    host.facts["cgroup"] = _version_text(version)
    if version == "unified":
        _look_at_delegation(host, refused)
    else:
        _advise_unified(host, version)
    _look_at_swap(host)
    host.facts["hardening"] = f"{_user_namespaces()}, {_seccomp()}, {_landlock()}"
    return host


def cgroup_version(mounts: str) -> CgroupVersion:
    """Which hierarchy a table of mounts (proc(5)) has."""
    lines = [line.split() for line in mounts.splitlines()]
    v2 = [words[1] for words in lines if len(words) > 2 and words[2] == "cgroup2"]
    v1 = any(len(words) > 2 and words[2] == "cgroup" for words in lines)
    if MOUNT in v2:
        return "unified"
    if v2:
        return "hybrid"
    return "legacy" if v1 else "none"


def _version_text(version: CgroupVersion) -> str:
    return {
        "unified": "version 2 (unified)",
        "hybrid": "version 1 beside an idle version 2 (hybrid); limits need version 2 alone",
        "legacy": "version 1 (legacy); limits need version 2",
        "none": "none is mounted",
    }[version]


def _advise_unified(host: Host, version: CgroupVersion) -> None:
    if version == "none":
        host.advise("mount cgroup version 2, as root:", f"mount -t cgroup2 none {MOUNT}")
        return
    host.advise(
        "boot the host with cgroup version 2; with GRUB, as root:",
        """sed -i 's/^GRUB_CMDLINE_LINUX="/&systemd.unified_cgroup_hierarchy=1 /' /etc/default/grub""",
        "update-grub && reboot",
    )


# --- delegation ------------------------------------------------------------------------------------------


def _look_at_delegation(host: Host, refused: CgroupError | None) -> None:
    own = _own_group()
    host.facts["own group"] = own.removeprefix(MOUNT) or "/"
    if os.statvfs(MOUNT).f_flag & os.ST_RDONLY:
        host.facts["delegated"] = f"no: {MOUNT} is mounted read-only, as containers have it"
        host.advise(
            "start the container with a writable cgroup namespace:",
            "docker run --cgroupns=private --security-opt writable-cgroups=true …   (Docker 28 or later)",
            "podman run --cgroupns=private --security-opt unmask=/sys/fs/cgroup …",
        )
        return
    try:
        top = find_root().path
        host.facts["delegated"] = top.removeprefix(MOUNT) or "/"
    except CgroupError as error:
        top = error.path if error.path.startswith(MOUNT) else own
        host.facts["delegated"] = _no_root(error, refused)
    _look_at_controllers(host, top)
    _look_at_files(host, top)
    if refused is not None and not host.advice:
        _advise_delegation(host)


def _no_root(error: CgroupError, refused: CgroupError | None) -> str:
    if refused is None:
        return "no, but systemd gives a scope of its own to each run"
    return f"no: {error.step.removeprefix('find delegated root: ')}"


def _look_at_controllers(host: Host, top: str) -> None:
    """Which controllers reach the delegated group, and above which group the others end."""
    ends = {name: where for name in WANTED if (where := _lacking_ancestor(top, name))}
    there = " ".join(name for name in WANTED if name not in ends) or "none"
    missing = "; ".join(f"{name} ends at {where.removeprefix(MOUNT) or '/'}" for name, where in ends.items())
    host.facts["controllers"] = f"{there}{'; ' if missing else ''}{missing}"
    needed = [name for name in ends if name != "io"]  # no limit of ours uses it yet
    if not needed:
        return
    lines = [f"[Service] Delegate={' '.join(WANTED)}", "systemctl daemon-reload"]
    if any("/user@" in f"{where}/" for where in ends.values()) or "/user.slice" in top:
        lines[0] = f"in /etc/systemd/system/user@.service.d/delegate.conf: {lines[0]}"
        lines[1] += " && systemctl restart user@UID.service"
    else:
        lines[0] = f"in the unit, or the one above that names it: {lines[0]}"
    host.advise(f"have systemd give the {' and '.join(needed)} controller on:", *lines)


def _lacking_ancestor(top: str, controller: str) -> str:
    """The highest cgroup that does not have a controller; empty where ``top`` has it."""
    path, lacking = top, ""
    while path.startswith(MOUNT):
        if controller in _read(f"{path}/cgroup.controllers").split():
            return lacking
        path, lacking = os.path.dirname(path), path
    return lacking


def _look_at_files(host: Host, top: str) -> None:
    """Which files this kernel does not have; not asked of the hierarchy's root, which lacks many."""
    folder = top if top != MOUNT else _some_group()
    if not folder:
        return
    controllers = _read(f"{folder}/cgroup.controllers").split()
    missing = [
        f"{name} (Linux {since})"
        for name, (controller, since) in _FILES.items()
        if (not controller or controller in controllers) and not os.path.exists(f"{folder}/{name}")
    ]
    if missing:
        host.facts["kernel lacks"] = f"{', '.join(missing)}; a substitute is used, and named in each result"


def _some_group() -> str:
    with os.scandir(MOUNT) as entries:
        return next((entry.path for entry in entries if entry.is_dir(follow_symlinks=False)), "")


def _own_group() -> str:
    lines = _read("/proc/self/cgroup").splitlines()
    return (MOUNT + next((line[3:] for line in lines if line.startswith("0::")), "/")).rstrip("/")


def _advise_delegation(host: Host) -> None:
    user = " --user" if os.geteuid() else ""
    if os.path.isdir("/run/systemd/system"):
        if os.geteuid() and not os.path.exists(scope.bus_path()):
            host.advise("have a user manager, and its bus:", "loginctl enable-linger $USER")
            return
        host.advise(
            "give gwsandbox a cgroup of its own; for one command, or in the unit that runs it:",
            f"systemd-run{user} --scope -p Delegate=yes -- COMMAND",
            f"[Service] Delegate={' '.join(WANTED)}",
        )
    else:
        host.advise("give this user a cgroup, as root:", f"chown -R $USER {_own_group()}")


# --- the kernel ------------------------------------------------------------------------------------------


def _look_at_swap(host: Host) -> None:
    if len(_read("/proc/swaps").splitlines()) < 2:
        host.facts["swap"] = "off"
    elif host.facts["cgroup"].startswith("version 2") and not _accounts_swap():
        host.facts["swap"] = "on, and not accounted: memory limits are refused"
        host.advise(
            "have swap accounted, or none:",
            "boot with swapaccount=1 on the kernel's command line",
            "swapoff -a",
        )
    else:
        host.facts["swap"] = "on, accounted"


def _accounts_swap() -> bool:
    folder = _own_group() if _own_group() != MOUNT else _some_group()
    while folder.startswith(f"{MOUNT}/"):
        if os.path.exists(f"{folder}/memory.max"):
            return os.path.exists(f"{folder}/memory.swap.max")
        folder = os.path.dirname(folder)
    return True  # nowhere to see it


def _user_namespaces() -> str:
    if _read("/proc/sys/user/max_user_namespaces").strip() in {"", "0"}:
        return "no user namespaces"
    denied = _read("/proc/sys/kernel/unprivileged_userns_clone").strip() == "0"
    restricted = _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").strip() == "1"
    return f"user namespaces{' for root only' if denied or restricted else ''}"


def _seccomp() -> str:
    return "seccomp" if os.path.exists("/proc/sys/kernel/seccomp/actions_avail") else "no seccomp filters"


def _landlock() -> str:
    modules = _read("/sys/kernel/security/lsm")
    if not modules:
        return "Landlock unknown (securityfs is not mounted)"
    return "Landlock" if "landlock" in modules.split(",") else "no Landlock"


def _read(path: str) -> str:
    """The text of a file; empty where it cannot be read."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""
