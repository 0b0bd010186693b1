"""What ``gwsandbox doctor`` says of the host: cgroups, swap, kernel; and what mends what is missing."""

from __future__ import annotations

import contextlib
import os
import shlex
from dataclasses import dataclass, field
from typing import Literal

from gwsandbox.backends.cgroup.delegation import MOUNT, WANTED, NotDelegated, WrongNamespace, find_root, is_marked
from gwsandbox.linux import systemd_scope
from gwsandbox.model.errors import CgroupError

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
        # As the last word, which wins: the line may hold the opposite.
        r"""sed -i 's/^\(GRUB_CMDLINE_LINUX=".*\)"/\1 systemd.unified_cgroup_hierarchy=1"/' /etc/default/grub""",
        "update-grub && reboot",
    )


# --- delegation ------------------------------------------------------------------------------------------


def _look_at_delegation(host: Host, refused: CgroupError | None) -> None:
    host.facts["own group"] = _shown(_own_group())
    if os.statvfs(MOUNT).f_flag & os.ST_RDONLY:
        host.facts["delegated"] = f"no: {MOUNT} is mounted read-only, as containers have it"
        _advise_container(host)
        return
    try:
        top = find_root().path
        host.facts["delegated"] = _shown(top)
    except WrongNamespace as error:
        host.facts["delegated"] = _no(error)
        _advise_namespace(host, error)
        return
    except NotDelegated as error:
        top = _own_group() if refused else _above_scopes()
        host.facts["delegated"] = _no(error) if refused else "no, but systemd gives a scope of its own to each run"
        if refused:
            _advise_delegation(host)
    except CgroupError as error:  # without a controller that is needed
        top = error.path
        host.facts["delegated"] = _no(error)
    _look_at_controllers(host, top)
    _look_at_files(host, top)
    if refused and not host.advice:
        _advise_delegation(host)


def _no(error: CgroupError) -> str:
    return f"no: {error.step.removeprefix('find delegated root: ')}"


def _above_scopes() -> str:
    """Of the groups above the scopes that systemd gives us, the lowest that is there already."""
    uid = os.geteuid()
    return f"{MOUNT}/user.slice/user-{uid}.slice/user@{uid}.service" if uid else MOUNT


def _look_at_controllers(host: Host, top: str) -> None:
    """Which controllers reach the delegated group, and above which group the others end."""
    ends = {name: where for name in WANTED if (where := _lacking_ancestor(top, name))}
    there = " ".join(name for name in WANTED if name not in ends) or "none"
    missing = "; ".join(f"{name} ends at {_shown(where)}" for name, where in ends.items())
    host.facts["controllers"] = f"{there}{'; ' if missing else ''}{missing}"
    ends.pop("io", None)  # no limit of ours uses it yet
    if ends and not host.advice:  # a delegated group, which other advice gets, has them all
        _advise_controllers(host, top, ends)


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
    lines = _read("/proc/self/cgroup").splitlines()
    return (MOUNT + next((line[3:] for line in lines if line.startswith("0::")), "/")).rstrip("/")


def _shown(path: str) -> str:
    return path.removeprefix(MOUNT) or "/"


# --- what mends the want of it ---------------------------------------------------------------------------


def _advise_container(host: Host) -> None:
    host.advise(
        "start the container with a writable cgroup namespace:",
        "docker run --cgroupns=private --security-opt writable-cgroups=true …   (Docker 28 or later)",
        "podman run --cgroupns=private --security-opt unmask=/sys/fs/cgroup …",
    )


def _advise_namespace(host: Host, error: WrongNamespace) -> None:
    if error.path == MOUNT:
        # mount(2) refuses to put a file system on top of itself, of another namespace or not.
        host.advise(
            "mount the file system of this cgroup namespace, as root:",
            f"umount -lR {MOUNT}",
            f"mount -t cgroup2 none {MOUNT}",
        )
    elif error.path.startswith("/.."):
        # From inside it cannot be mended: the kernel moves no process into a namespace from there (nsdelegate).
        host.advise(
            "enter the container by its runtime, or join the cgroup of a process PID in it first, as root on its host:",
            f"echo $$ >{MOUNT}$(sed -n s/^0:://p /proc/PID/cgroup)/cgroup.procs",
            "nsenter --target PID --cgroup --mount -- COMMAND",
        )
    else:
        _advise_container(host)


def _advise_delegation(host: Host) -> None:
    uid = os.geteuid()
    if not os.path.isdir("/run/systemd/system"):
        files = "cgroup.procs cgroup.subtree_control cgroup.threads"
        host.advise("give this user its cgroup, as root:", f"cd {_own_group()} && chown {uid} . {files}")
        return
    if uid and not os.path.exists(systemd_scope.bus_path()):
        host.advise("have a user manager, and its bus, as root:", f"loginctl enable-linger {uid}")
        return
    _advise_scope(host)
    unit = next(reversed(_units(_own_group())), "")
    if unit.endswith(".service") and not is_marked(unit):
        _advise_unit(host, "or for good", unit)


def _advise_controllers(host: Host, top: str, ends: dict[str, str]) -> None:
    """Name the unit that passes them on: the first at or below the group where they end."""
    where = min(ends.values(), key=len)
    unit = next((path for path in _units(top) if f"{path}/".startswith(f"{where}/")), "")
    names = " and ".join(ends)
    if unit.endswith(".service"):
        _advise_unit(host, f"have systemd give the {names} controller on", unit)
    elif unit:
        _advise_scope(host)
    else:
        host.advise(
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


def _advise_scope(host: Host) -> None:
    # Under su, sudo and cron the environment does not tell systemd-run where the user's bus is.
    runtime = os.path.dirname(systemd_scope.bus_path())
    user = f"XDG_RUNTIME_DIR={runtime} systemd-run --user" if os.geteuid() else "systemd-run"
    host.advise("give gwsandbox a cgroup of its own, for one command:", f"{user} --scope -p Delegate=yes -- COMMAND")


def _advise_unit(host: Host, why: str, unit: str) -> None:
    """Delegate to the unit whose cgroup is ``unit``."""
    name = shlex.quote(os.path.basename(unit))
    if "/user@" in os.path.dirname(unit):
        who, systemctl, folder = "in your unit", "systemctl --user", f"~/.config/systemd/user/{name}.d"
    else:
        who, systemctl, folder = "in the unit, as root", "systemctl", f"/etc/systemd/system/{name}.d"
    host.advise(
        f"{why}, {who}:",
        f"mkdir -p {folder}",
        f"printf '[Service]\\nDelegate={' '.join(WANTED)}\\n' >{folder}/delegate.conf",
        f"{systemctl} daemon-reload && {systemctl} restart {name}",
    )


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
    folder = _own_group() if os.path.exists(f"{_own_group()}/cgroup.events") else _some_group()
    while folder.startswith(MOUNT):
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
