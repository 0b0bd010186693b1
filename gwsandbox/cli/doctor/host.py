"""The host as ``gwsandbox doctor`` finds it: cgroups, swap, kernel; and a remedy for each feature that is missing."""

from __future__ import annotations

import contextlib
import os
import shlex
from dataclasses import dataclass, field
from typing import Literal

from gwsandbox.backends.cgroup import remedies
from gwsandbox.backends.cgroup.delegation import MOUNT, WANTED, NotDelegated, WrongNamespace, find_root, is_marked
from gwsandbox.linux import procfs, systemd_scope
from gwsandbox.model.errors import CgroupError

CgroupVersion = Literal["unified", "hybrid", "legacy", "none"]

# Files of a cgroup: the controller that has the file, and the version of Linux that introduced it.
_FILES = {
    "memory.peak": ("memory", "5.19"),
    "memory.swap.peak": ("memory", "6.5"),
    "memory.events.local": ("memory", "5.2"),
    "pids.peak": ("pids", "6.1"),
    "cgroup.kill": ("", "5.14"),
}


@dataclass(slots=True)
class Host:
    """Facts and advice.

    Args:
        facts: By name, in the order of the screen.
        advice: Remedies; each is a sentence, and the commands or unit lines to follow.
    """

    facts: dict[str, str] = field(default_factory=dict)
    advice: list[tuple[str, list[str]]] = field(default_factory=list)

    def add_advice(self, why: str, *lines: str) -> None:
        self.advice.append((why, list(lines)))


def inspect_host(refused: CgroupError | None) -> Host:
    """Inspect this host.

    Args:
        refused: Why the cgroup backend is not available; ``None`` where it is.
    """
    host = Host()
    mounts = _read("/proc/self/mounts")
    version = cgroup_version(mounts)
    host.facts["cgroup"] = _version_text(version)
    if "memory_localevents" in mount_options(mounts):
        host.facts["mount option"] = "memory_localevents: OOM kills in groups that a task makes itself are not counted"
    if version == "unified":
        _inspect_delegation(host, refused)
    else:
        _add_unified_advice(host, version)
    _inspect_swap(host)
    host.facts["hardening"] = f"{_user_namespaces()}, {_seccomp()}, {_landlock()}"
    return host


def cgroup_version(mounts: str) -> CgroupVersion:
    """The kind of hierarchy in a table of mounts (proc(5))."""
    lines = [line.split() for line in mounts.splitlines()]
    v2 = [words[1] for words in lines if len(words) > 2 and words[2] == "cgroup2"]
    v1 = any(len(words) > 2 and words[2] == "cgroup" for words in lines)
    if MOUNT in v2:
        return "unified"
    if v2:
        return "hybrid"
    return "legacy" if v1 else "none"


def mount_options(mounts: str) -> list[str]:
    """The options with which a table of mounts (proc(5)) has version 2 at its place; empty where it has it not."""
    lines = [line.split() for line in mounts.splitlines()]
    found = [words[3].split(",") for words in lines if len(words) > 3 and words[1:3] == [MOUNT, "cgroup2"]]
    return found[-1] if found else []


def _version_text(version: CgroupVersion) -> str:
    return {
        "unified": "version 2 (unified)",
        "hybrid": "version 1 beside an idle version 2 (hybrid); limits need version 2 alone",
        "legacy": "version 1 (legacy); limits need version 2",
        "none": "none is mounted",
    }[version]


def _add_unified_advice(host: Host, version: CgroupVersion) -> None:
    if version == "none":
        host.add_advice("mount cgroup version 2, as root:", f"mount -t cgroup2 none {MOUNT}")
        return
    where = ", on the host of this container" if remedies.is_container() else ""
    host.add_advice(
        f"boot the host with cgroup version 2; with GRUB, as root{where}:",
        # At the end of the line: the last setting counts, and the line may hold the opposite.
        r"""sed -i 's/^\(GRUB_CMDLINE_LINUX=".*\)"/\1 systemd.unified_cgroup_hierarchy=1"/' /etc/default/grub""",
        "update-grub && reboot",
    )


# --- delegation ------------------------------------------------------------------------------------------


def _inspect_delegation(host: Host, refused: CgroupError | None) -> None:
    host.facts["own group"] = _shown(_own_group())
    if remedies.is_read_only():
        _inspect_read_only(host)
        return
    try:
        top = find_root().path
        host.facts["delegated"] = _shown(top)
        if systemd_scope.ends_with_a_task():
            host.add_advice(
                "keep the unit running when a task of it is killed at its memory limit, in the unit:",
                "OOMPolicy=continue",
            )
    except WrongNamespace as error:
        host.facts["delegated"] = _no(error)
        _add_namespace_advice(host, error)
        return
    except NotDelegated as error:
        top = _own_group() if refused else _above_scopes()
        host.facts["delegated"] = _no(error) if refused else "no, but systemd gives a scope of its own to each run"
        if refused:
            _add_delegation_advice(host)
    except CgroupError as error:  # without a controller that is needed
        top = error.path
        host.facts["delegated"] = _no(error)
    _inspect_controllers(host, top)
    _inspect_files(host, top)
    if refused and not host.advice:
        _add_delegation_advice(host)


def _inspect_read_only(host: Host) -> None:
    unit = remedies.own_unit(_own_group())
    if os.path.isdir("/run/systemd/system") and remedies.own_service(unit) and not remedies.is_container():
        host.facts["delegated"] = f"no: {MOUNT} is mounted read-only, as ProtectControlGroups= has it"
        _add_unit_advice(host, "make it writable, and delegate a cgroup,", unit, "ProtectControlGroups=no")
    else:
        host.facts["delegated"] = f"no: {MOUNT} is mounted read-only, as containers have it"
        _add_container_advice(host)


def _no(error: CgroupError) -> str:
    return f"no: {error.step.removeprefix('find delegated root: ')}"


def _above_scopes() -> str:
    """The lowest existing group above the scopes that systemd creates for our runs."""
    uid = os.geteuid()
    return f"{MOUNT}/user.slice/user-{uid}.slice/user@{uid}.service" if uid else MOUNT


def _inspect_controllers(host: Host, top: str) -> None:
    """The controllers that reach the delegated group, and the group where each other one ends."""
    ends = {name: where for name in WANTED if (where := _lacking_ancestor(top, name))}
    there = " ".join(name for name in WANTED if name not in ends) or "none"
    missing = "; ".join(f"{name} ends at {_shown(where)}" for name, where in ends.items())
    host.facts["controllers"] = f"{there}{'; ' if missing else ''}{missing}"
    ends.pop("io", None)  # no limit uses it
    if ends and not host.advice:  # other advice gives a delegated group, which has all controllers
        _add_controllers_advice(host, top, ends)


def _lacking_ancestor(top: str, controller: str) -> str:
    """The highest cgroup that does not have a controller; empty where ``top`` has it."""
    path, lacking = top, ""
    while path.startswith(MOUNT):
        if controller in _read(f"{path}/cgroup.controllers").split():
            return lacking
        path, lacking = os.path.dirname(path), path
    return lacking


def _inspect_files(host: Host, top: str) -> None:
    """The files that this kernel lacks. The root of the hierarchy lacks many on any kernel, so a child is inspected."""
    folder = top if os.path.exists(f"{top}/cgroup.events") else _some_group()
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
    return (MOUNT + (procfs.own_cgroup() or "/")).rstrip("/")


def _shown(path: str) -> str:
    return path.removeprefix(MOUNT) or "/"


# --- remedies --------------------------------------------------------------------------------------------


def _add_container_advice(host: Host) -> None:
    host.add_advice(
        "start the container with a writable cgroup namespace:",
        "docker run --cgroupns=private --security-opt writable-cgroups=true …   (Docker 28 or later)",
        "podman run --cgroupns=private --security-opt unmask=/sys/fs/cgroup …",
    )


def _add_namespace_advice(host: Host, error: WrongNamespace) -> None:
    if error.path == MOUNT:
        # mount(2) refuses to put a file system on top of itself, of another namespace or not.
        host.add_advice(
            "mount the file system of this cgroup namespace, as root:",
            f"umount -lR {MOUNT}",
            f"mount -t cgroup2 none {MOUNT}",
        )
    elif error.path.startswith("/.."):
        # The remedy is outside: with nsdelegate the kernel moves no process into a namespace from inside of it.
        host.add_advice(
            "enter the container by its runtime, or join the cgroup of a process PID in it first, as root on its host:",
            f"echo $$ >{MOUNT}$(sed -n s/^0:://p /proc/PID/cgroup)/cgroup.procs",
            "nsenter --target PID --cgroup --mount -- COMMAND",
        )
    else:
        _add_container_advice(host)


def _add_delegation_advice(host: Host) -> None:
    uid = os.geteuid()
    if not os.path.isdir("/run/systemd/system"):
        files = "cgroup.procs cgroup.subtree_control cgroup.threads"
        host.add_advice("give this user its cgroup, as root:", f"cd {_own_group()} && chown {uid} . {files}")
        return
    unit = remedies.own_unit(_own_group())
    can_delegate = remedies.own_service(unit) and not is_marked(unit)
    if not uid or os.path.exists(systemd_scope.bus_path()):  # root needs no bus: systemd-run has a socket of its own
        host.add_advice("give gwsandbox a cgroup of its own, for one command:", remedies.scope())
        if can_delegate:
            _add_unit_advice(host, "or for good", unit)
    elif can_delegate:  # it may be the user of this unit only, and never log in
        _add_unit_advice(host, "delegate a cgroup to the service", unit)
    else:
        host.add_advice("start a user manager and its bus, as root:", remedies.manager())


def _add_controllers_advice(host: Host, top: str, ends: dict[str, str]) -> None:
    """Name the unit that has to pass them on: the first at or below the group where they end."""
    where = min(ends.values(), key=len)
    unit = next((path for path in _units(top) if f"{path}/".startswith(f"{where}/")), "")
    names = " and ".join(ends)
    if unit.endswith(".service"):
        _add_unit_advice(host, f"pass on the {names} controller", unit)
    elif unit:
        host.add_advice("give gwsandbox a cgroup of its own, for one command:", remedies.scope())
    else:
        host.add_advice(
            f"give the container the {names} controller, in the unit that runs it on its host:",
            f"Delegate={' '.join(WANTED)}",
        )


def _units(path: str) -> list[str]:
    """The cgroups of the units that hold ``path``, outermost first; slices have no processes of their own."""
    found = []
    while path.startswith(MOUNT):
        if path.endswith((".service", ".scope")):
            found.append(path)
        path = os.path.dirname(path)
    return found[::-1]


def _add_unit_advice(host: Host, why: str, unit: str, *more: str) -> None:
    """Delegate to the unit whose cgroup is ``unit``, with ``more`` lines in its section."""
    name = shlex.quote(os.path.basename(unit))
    if "/user@" in os.path.dirname(unit):
        who, systemctl, folder = "in your unit", "systemctl --user", f"~/.config/systemd/user/{name}.d"
    else:
        who, systemctl, folder = "in the unit, as root", "systemctl", f"/etc/systemd/system/{name}.d"
    lines = "".join(f"{line}\\n" for line in ("[Service]", f"Delegate={' '.join(WANTED)}", *more))
    host.add_advice(
        f"{why}, {who}:",
        f"mkdir -p {folder}",
        f"printf '{lines}' >{folder}/delegate.conf",
        f"{systemctl} daemon-reload && {systemctl} restart {name}",
    )


# --- the kernel ------------------------------------------------------------------------------------------


def _inspect_swap(host: Host) -> None:
    if len(_read("/proc/swaps").splitlines()) < 2:
        host.facts["swap"] = "off"
    elif host.facts["cgroup"].startswith("version 2") and not _accounts_swap():
        host.facts["swap"] = "on, and not accounted: memory limits are refused"
        host.add_advice(
            "account swap, or turn it off:",
            "boot with swapaccount=1 on the kernel's command line",
            "swapoff -a",
        )
    else:
        host.facts["swap"] = "on, accounted"


def _accounts_swap() -> bool:
    folder = _own_group() if os.path.exists(f"{_own_group()}/cgroup.events") else _some_group()
    while folder.startswith(MOUNT):
        if os.path.exists(f"{folder}/memory.max"):
            return os.path.exists(f"{folder}/memory.swap.max")
        folder = os.path.dirname(folder)
    return True  # no group shows it


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
