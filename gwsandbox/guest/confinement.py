"""What holds a run's ``Hardening``: steps that the zygote takes once, and calls that each guest makes.

Whatever is inherited costs a guest nothing, so the zygote does it: a view of mounts, capabilities, a seccomp filter. A
guest's own are two system calls, prepared beforehand: to enter a Landlock domain of its own (guests of one domain may
trace and signal each other), and to lose clone3, which the zygote needs.

Each step says of the mechanisms that it is for whether they hold: "enforced", "partly: why" or "not: why".
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field

from gwsandbox.guest import domain, reach
from gwsandbox.guest.isolation import Isolation, isolate, slot_users, tried
from gwsandbox.guest.slots import Slots
from gwsandbox.linux import confine, landlock, namespaces, seccomp
from gwsandbox.linux.confine import Prepared
from gwsandbox.model.hardening import ENFORCED, Hardening
from gwsandbox.model.options import RunOptions

# What a program that runs as root keeps: to own and read files, to become somebody else, to serve.
_KEPT = namespaces.numbers(
    (
        *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "setfcap"),
        *("net_bind_service", "net_broadcast", "net_raw", "ipc_lock", "sys_chroot", "audit_write", "lease"),
    )
)
# And where it sees nothing but what it is given: what it takes to read and write to that.
_KEPT_IN_ISOLATION = namespaces.numbers(("dac_override",))
# What the zygote needs to enter and make views, to name processes by its own pids, and for guests to become users.
_FOR_GUESTS = namespaces.numbers(("sys_admin", "sys_chroot", "setuid", "setgid"))
# Where the kernel takes orders: about the machine, and about a guest's own limits.
_CONTROL_FOLDERS = ("/proc/sys", "/sys")
_UNPICKLED = "not: values are unpickled in the caller; results='plain' takes plain data only"
_NOT_YET = {
    "files": "privileges='keep' leaves them open",
    "network": "privileges='keep' leaves the host's",
    "temporary": "privileges='keep' leaves the host's",
    "clean_interpreter": "guests are forks of the caller, with all that it holds; see start_method='forkserver'",
}


@dataclass(slots=True, eq=False, repr=False)
class Confinement:
    """What the zygote has prepared.

    Attributes:
        held: For each mechanism that was asked for, whether it holds.
        calls: System calls that a guest makes before its task begins.
        program_calls: Those of a guest that becomes a program.
        changes_user: Whether the calls make it another user's.
        ruleset: Descriptor of the Landlock ruleset, or -1. No guest may keep it: who has it can change it.
        own_pids: Whether this process is in a PID namespace of the run's own.
        users: By slot, the calls that make a guest the slot's own user; empty where they are to make it none.
        slots: Views by slot, where each has its own.
    """

    held: dict[str, str] = field(default_factory=dict)
    calls: tuple[Prepared, ...] = ()
    program_calls: tuple[Prepared, ...] = ()
    ruleset: int = -1
    changes_user: bool = False
    own_pids: bool = False
    users: tuple[tuple[Prepared, ...], ...] = ()
    slots: Slots | None = None

    def by_slot(self) -> list[tuple[tuple[Prepared, ...], tuple[Prepared, ...]]]:
        """For each slot ``calls`` and ``program_calls``, where they are not the same for all."""
        return [((*become, *self.calls), (*become, *self.program_calls)) for become in self.users]


def confine_zygote(options: RunOptions, why_no_pid_namespace: str = "") -> Confinement:
    """In the zygote, once, after all that needs a privilege: give up what no guest is to have.

    Args:
        options: Of the run.
        why_no_pid_namespace: Why this process is in no PID namespace of the run's own, where it is to be.
    """
    hardening = options.hardening
    made = Confinement()
    asked = hardening.mechanisms()
    if not asked:
        return made
    if hardening.environment is not None:
        _keep_environment(hardening.environment)
        made.held["environment"] = ENFORCED
    users: list[int] = []
    if hardening.user == "slot":
        made.held["user"] = tried(lambda: users.extend(_give_users(made, options)))
    elif hardening.user is not None:
        made.held["user"] = tried(lambda: _change_user(made, str(hardening.user)))
    if hardening.privileges == "bound":
        isolation = Isolation()
        if hardening.isolates:
            made.own_pids = not why_no_pid_namespace
            isolation = isolate(options, users, why_no_pid_namespace)
            made.held.update(isolation.held)
            made.slots = isolation.slots
        _bind(made, options, isolation)
    if hardening.syscalls != "all" or hardening.network == "none":
        _filter(made, hardening)
    if hardening.needs_clean_interpreter and (options.start_method != "fork" or options.pass_through):
        made.held["clean_interpreter"] = ENFORCED
    made.held["results"] = ENFORCED if hardening.results == "plain" else _UNPICKLED
    for name in asked - made.held.keys():
        made.held[name] = f"not: {_NOT_YET[name]}"
    return made


def _keep_environment(names: tuple[str, ...]) -> None:
    for name in os.environ.keys() - set(names):
        del os.environ[name]


def _give_users(made: Confinement, options: RunOptions) -> list[int]:
    """Prepare for each guest to become the user of its slot.

    Raises:
        OSError: This process may become no other, or there are too many slots.
    """
    effective, _, _ = confine.capget()
    if os.geteuid() or not effective & namespaces.numbers(["setuid"]):
        raise OSError(errno.EPERM, "setresuid: only root may become another user")
    users = slot_users(options)
    made.users = tuple(confine.prepare_user(uid, uid, ()) for uid in users)
    made.changes_user = True
    return users


def _change_user(made: Confinement, name: str) -> None:
    """Prepare for guests to become a user, before all that they give up else.

    Raises:
        OSError: There is none of that name, or this process may become no other.
    """
    import pwd  # noqa: PLC0415 - of no other use

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise OSError(errno.ENOENT, f"getpwnam: there is no user {name!r}") from None
    effective, _, _ = confine.capget()
    if entry.pw_uid != os.geteuid() and not effective & namespaces.numbers(["setuid"]):
        raise OSError(errno.EPERM, f"setresuid: only root may become {name!r}")
    become = confine.prepare_user(entry.pw_uid, entry.pw_gid, os.getgrouplist(name, entry.pw_gid))
    made.changes_user = entry.pw_uid != os.geteuid()
    made.calls, made.program_calls = become, become


# --- privileges -----------------------------------------------------------------------------------------


def _bind(made: Confinement, options: RunOptions, isolation: Isolation) -> None:
    """Give up privileges, and what can be done with them; in an order in which each step still has what it needs."""
    hardening = options.hardening
    buses = domain.bus_sockets()
    why_no_view = "" if isolation.has_root else _take_view()
    if hardening.temporary is not None and "temporary" not in made.held:
        made.held["temporary"] = _take_private_folders(hardening, options.modules, why_no_view)
    if hardening.network == "loopback" and "network" not in made.held:
        made.held["network"] = tried(lambda: namespaces.private_network(loopback=True))
    made.held["ipc"] = tried(lambda: confine.unshare(confine.CLONE_NEWIPC))
    made.held["capabilities"] = _give_up_capabilities(made, hardening)
    made.held["no_new_privs"] = tried(confine.no_new_privs)
    made.held["own_processes"] = ENFORCED  # the reaper and the supervisor have made themselves undumpable
    hidden = isolation.hidden if isolation.has_root else None
    own = domain.prepare_domain(buses, why_no_view, _files(made, options, isolation), hidden)
    if "files" in own.held and not isolation.has_root and hardening.isolates:
        own.held["files"] += f"; no root folder of its own ({made.held['files'].removeprefix('not: ')})"
    made.held.update(own.held)
    made.held["ptrace"] = f"not: {own.why_none}" if own.why_none else ENFORCED
    _add_domain(made, own.ruleset)
    if made.own_pids and not made.users and made.held["signals"] != ENFORCED:
        made.held["signals"] += "; user='slot' does so too, for root"
    if made.own_pids and made.users:  # who is another user reaches none of the processes that he sees
        made.held["ptrace"] = made.held["signals"] = ENFORCED


def _files(made: Confinement, options: RunOptions, isolation: Isolation) -> domain.Files | None:
    """Which files Landlock is to leave; ``None``: all."""
    hardening = options.hardening
    if isolation.has_root:  # but nothing outside, as what a stream leads to that was open before
        left = landlock.READ | landlock.WRITE | landlock.RESOLVE_UNIX | landlock.IOCTL_DEV
        return domain.Files({"/": left}, left | landlock.DEVICES)
    if "files" not in hardening.mechanisms():
        return None
    given, taken = reach.file_rules(hardening, options.modules), landlock.WRITE | landlock.DEVICES
    taken |= landlock.RESOLVE_UNIX | (landlock.READ if hardening.readable is not None else 0)
    if made.held.get("temporary", "not").startswith("partly"):
        given.update(dict.fromkeys(reach.TEMPORARY, landlock.READ | landlock.WRITE | landlock.RESOLVE_UNIX))
    return domain.Files(given, taken)


def _give_up_capabilities(made: Confinement, hardening: Hardening) -> str:
    kept = _KEPT_IN_ISOLATION if hardening.isolates else _KEPT
    kept = 0 if made.changes_user and made.own_pids else kept
    if not made.own_pids:
        return tried(lambda: namespaces.keep_capabilities(kept))
    # The zygote keeps those that it needs for each guest, which gives them up: in its own namespaces, it has none else.
    held = tried(lambda: namespaces.keep_capabilities(kept, for_itself=_FOR_GUESTS))
    effective, permitted, _ = confine.capget()
    last = confine.prepare_capset(effective & kept, permitted & kept, 0)
    made.calls, made.program_calls = (*made.calls, last), (*made.program_calls, last)
    return held


def _add_domain(made: Confinement, ruleset: int) -> None:
    dumpable = confine.prepare_dumpable(dumpable=True)
    if ruleset < 0:
        made.calls += (dumpable,)  # a program is, by its exec
        return
    # No guest can look into the zygote from its domain. So it need not be undumpable as the supervisor is, whose look
    # at a guest that is just born would be refused else.
    confine.apply(dumpable, "prctl")
    made.ruleset = ruleset
    enter = confine.prepare_landlock_restrict_self(ruleset)
    made.calls, made.program_calls = (*made.calls, enter), (*made.program_calls, enter)


def _take_view() -> str:
    """See mounts without what takes orders; why that cannot be, or ``""``. For root only."""
    try:
        namespaces.private_mounts()
        elsewhere = {mount.path for mount in namespaces.mounts() if mount.kind in {"cgroup", "cgroup2"}}
        for folder in (*_CONTROL_FOLDERS, *(path for path in elsewhere if not path.startswith("/sys/"))):
            with contextlib.suppress(FileNotFoundError):
                namespaces.make_read_only(folder)
        for path in domain.existing(domain.BUSES):
            namespaces.hide(path)
    except OSError as error:
        return str(error)
    return ""


def _take_private_folders(hardening: Hardening, modules: tuple[str, ...], why_no_view: str) -> str:
    """Give the run folders for temporary files of its own, with what it is given of the host's in its place."""
    if why_no_view:
        return f"not: no view of mounts of its own ({why_no_view})"
    try:
        here = os.getcwd()
        kept = (*reach.interpreter(), *(hardening.readable or ()), *(hardening.writable or ()), *modules, here)
        for folder in reach.TEMPORARY:
            with contextlib.suppress(FileNotFoundError):
                namespaces.make_private(folder, int(hardening.temporary or 0), kept)
        os.chdir(here)  # to what is seen there now
    except OSError as error:
        return f"not: {error}"
    return "partly: one for all tasks of the run, emptied at its end"


# --- system calls ---------------------------------------------------------------------------------------


def _filter(made: Confinement, hardening: Hardening) -> None:
    """Lose system calls: most at once, and clone3 in each guest, as its flags are behind a pointer."""
    mechanisms = hardening.mechanisms() & {"system_calls", "user_namespaces"}
    mechanisms |= {"network"} if hardening.network == "none" else set()
    if why := seccomp.why_none():
        made.held.update(dict.fromkeys(mechanisms, f"not: {why}"))
        return
    foreign = hardening.syscalls != "document"
    refused = _clone3_is_refused()
    rules = seccomp.policy(hardening.syscalls, hardening.network, tracing=made.ruleset >= 0, siblings=refused)
    last = {} if refused or hardening.syscalls == "all" else dict(seccomp.WITHOUT_CLONE3)
    if made.slots is not None:
        last |= {name: rules.pop(name) for name in seccomp.FOR_VIEWS if name in rules}
    call = confine.prepare_seccomp(seccomp.make_filter(rules, foreign=foreign))
    held = tried(lambda: confine.apply(call, "seccomp"))
    if held != ENFORCED:  # an ordinary user may not, who can still gain privileges
        tried(confine.no_new_privs)
        held = tried(lambda: confine.apply(call, "seccomp"))
    made.held.update(dict.fromkeys(mechanisms, held))
    if held != ENFORCED:
        return
    if last:
        filter_last = confine.prepare_seccomp(seccomp.make_filter(last, foreign=foreign))
        made.calls, made.program_calls = (*made.calls, filter_last), (*made.program_calls, filter_last)
    _count_filter(made, hardening)


def _count_filter(made: Confinement, hardening: Hardening) -> None:
    """What holds by the filter that does not hold else."""
    if hardening.syscalls != "all" and made.ruleset < 0 and "ptrace" in made.held:
        made.held["ptrace"] = made.held["ptrace"].replace("not:", "partly: not through /proc, as", 1)
    if hardening.syscalls == "document" and "ipc" in made.held:
        made.held["ipc"] = ENFORCED
    if hardening.syscalls == "document" and hardening.network == "none" and "abstract_sockets" in made.held:
        made.held["abstract_sockets"] = ENFORCED  # there is no socket to connect


def _clone3_is_refused() -> bool:
    """Whether this process cannot use it itself; then it makes guests by clone, as siblings of its own."""
    try:
        confine.clone3_of_nothing()
    except OSError as error:
        return error.errno in {errno.ENOSYS, errno.EPERM}
    return False
