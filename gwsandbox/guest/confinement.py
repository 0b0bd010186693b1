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
from collections.abc import Callable
from dataclasses import dataclass, field

from gwsandbox.guest import domain, reach
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
# Where the kernel takes orders: about the machine, and about a guest's own limits.
_CONTROL_FOLDERS = ("/proc/sys", "/sys")
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - to have them taken away
_UNPICKLED = "not: values are unpickled in the caller; results='plain' takes plain data only"
_NOT_YET = {
    "files": "privileges='keep' leaves them open",
    "network": "privileges='keep' leaves the host's",
    "user": "user='slot' is not made yet; a name is, for root",
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
    """

    held: dict[str, str] = field(default_factory=dict)
    calls: tuple[Prepared, ...] = ()
    program_calls: tuple[Prepared, ...] = ()
    ruleset: int = -1
    changes_user: bool = False


def confine_zygote(options: RunOptions) -> Confinement:
    """In the zygote, once, after all that needs a privilege: give up what no guest is to have."""
    hardening = options.hardening
    made = Confinement()
    asked = hardening.mechanisms()
    if not asked:
        return made
    if hardening.environment is not None:
        _keep_environment(hardening.environment)
        made.held["environment"] = ENFORCED
    if hardening.privileges == "bound":
        _bind(made, hardening, options.modules)
    if hardening.syscalls != "all" or hardening.network == "none":
        _filter(made, hardening)
    if hardening.needs_clean_interpreter and (options.start_method != "fork" or options.pass_through):
        made.held["clean_interpreter"] = ENFORCED
    made.held["results"] = ENFORCED if hardening.results == "plain" else _UNPICKLED
    if hardening.user not in {None, "slot"}:
        made.held["user"] = _tried(lambda: _change_user(made, str(hardening.user)))
    for name in asked - made.held.keys():
        made.held[name] = f"not: {_NOT_YET[name]}"
    return made


def _keep_environment(names: tuple[str, ...]) -> None:
    for name in os.environ.keys() - set(names):
        del os.environ[name]


def _tried(step: Callable[[], object]) -> str:
    try:
        step()
    except OSError as error:
        return f"not: {error}"
    return ENFORCED


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
    made.calls, made.program_calls = (*become, *made.calls), (*become, *made.program_calls)


# --- privileges -----------------------------------------------------------------------------------------


def _bind(made: Confinement, hardening: Hardening, modules: tuple[str, ...]) -> None:
    """Give up privileges, and what can be done with them; in an order in which each step still has what it needs."""
    buses = domain.bus_sockets()
    why_no_view = _take_view()
    if hardening.temporary is not None:
        made.held["temporary"] = _take_private_folders(hardening, modules, why_no_view)
    if hardening.network == "loopback":
        made.held["network"] = _tried(namespaces.private_network)
    files, taken = None, 0
    if "files" in hardening.mechanisms():
        files, taken = reach.file_rules(hardening, modules), landlock.WRITE | landlock.DEVICES | landlock.RESOLVE_UNIX
        taken |= landlock.READ if hardening.readable is not None else 0
        if made.held.get("temporary", "not").startswith("partly"):
            files.update(dict.fromkeys(_TEMPORARY, landlock.READ | landlock.WRITE | landlock.RESOLVE_UNIX))
    made.held["ipc"] = _tried(lambda: confine.unshare(confine.CLONE_NEWIPC))
    made.held["capabilities"] = _tried(lambda: namespaces.keep_capabilities(_KEPT))
    made.held["no_new_privs"] = _tried(confine.no_new_privs)
    made.held["own_processes"] = ENFORCED  # the reaper and the supervisor have made themselves undumpable
    own = domain.prepare_domain(buses, why_no_view, files, taken)
    made.held.update(own.held)
    made.held["ptrace"] = f"not: {own.why_none}" if own.why_none else ENFORCED
    dumpable = confine.prepare_dumpable(dumpable=True)
    if own.ruleset < 0:
        made.calls = (dumpable,)  # a program is, by its exec
        return
    # No guest can look into the zygote from its domain. So it need not be undumpable as the supervisor is, whose look
    # at a guest that is just born would be refused else.
    confine.apply(dumpable, "prctl")
    made.ruleset = own.ruleset
    made.calls = made.program_calls = (confine.prepare_landlock_restrict_self(own.ruleset),)


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
        kept = (*(hardening.readable or ()), *(hardening.writable or ()), *modules, here)
        for folder in _TEMPORARY:
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
    call = confine.prepare_seccomp(seccomp.make_filter(rules, foreign=foreign))
    held = _tried(lambda: confine.apply(call, "seccomp"))
    if held != ENFORCED:  # an ordinary user may not, who can still gain privileges
        _tried(confine.no_new_privs)
        held = _tried(lambda: confine.apply(call, "seccomp"))
    made.held.update(dict.fromkeys(mechanisms, held))
    if held != ENFORCED:
        return
    if hardening.syscalls != "all" and made.ruleset < 0 and "ptrace" in made.held:
        made.held["ptrace"] = made.held["ptrace"].replace("not:", "partly: not through /proc, as", 1)
    if hardening.syscalls == "document" and "ipc" in made.held:
        made.held["ipc"] = ENFORCED
    if not refused and hardening.syscalls != "all":
        last = confine.prepare_seccomp(seccomp.make_filter(seccomp.WITHOUT_CLONE3, foreign=foreign))
        made.calls += (last,)
        made.program_calls += (last,)


def _clone3_is_refused() -> bool:
    """Whether this process cannot use it itself; then it makes guests by clone, as siblings of its own."""
    try:
        confine.clone3_of_nothing()
    except OSError as error:
        return error.errno in {errno.ENOSYS, errno.EPERM}
    return False
