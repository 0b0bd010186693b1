"""A transient scope unit, asked of systemd over D-Bus: a delegated cgroup for a process that was not started with one.

Root asks the system's manager, everybody else the user's own (``systemd --user``), whose bus is found by the
user's id: under su, sudo, cron and ssh the environment names none or another user's.

A scope is no part of the unit that asks for it, so that what limits and confines the unit would be lost. It is
started below the unit's own slice, whose limits hold so, and with the unit's own properties, as far as those are of
its cgroup.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from gwsandbox.linux import procfs
from gwsandbox.model.errors import CgroupError

SLICE = "gwsandbox.slice"  # below another slice: "batch-gwsandbox.slice" is below "batch.slice"
_ROOT_SLICE = "-.slice"
_SYSTEM_BUS = "/run/dbus/system_bus_socket"
_SECONDS_TO_WAIT = 25  # D-Bus's own default
_REMEDY = "see systemctl status, or start under: systemd-run --scope -p Delegate=yes -- COMMAND"
_SENDER = 0  # in the place of a pid: the sender of the message, in any PID namespace
_NO_LIMIT = 2**64 - 1
_numbers = itertools.count()
_MANAGER = {
    "object_path": "/org/freedesktop/systemd1",
    "bus_name": "org.freedesktop.systemd1",
    "interface": "org.freedesktop.systemd1.Manager",
}
_KINDS = {"service": "Service", "scope": "Scope"}
# What a unit confines by its cgroup (systemd.resource-control(5)), and a scope can have too; older ones lack some.
_CARRIED = (
    *(
        "MemoryHigh",
        "MemoryMax",
        "MemorySwapMax",
        "TasksMax",
        "CPUQuotaPerSecUSec",
        "AllowedCPUs",
        "AllowedMemoryNodes",
    ),
    *("IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax"),
    *("DevicePolicy", "DeviceAllow", "IPAddressAllow", "IPAddressDeny", "IPIngressFilterPath", "IPEgressFilterPath"),
    *("RestrictNetworkInterfaces", "SocketBindAllow", "SocketBindDeny"),
)
# And what a scope cannot have.
_NOT_CARRIED = ("RestrictFileSystems",)
# Values that confine nothing; an empty list does not either.
_NOTHING: dict[str, Any] = {
    "DevicePolicy": "auto",
    "RestrictNetworkInterfaces": (False, []),
    "RestrictFileSystems": (False, []),
}


def bus_path() -> str:
    """The socket of the bus on which this user's systemd manager listens."""
    uid = os.geteuid()
    return f"/run/user/{uid}/bus" if uid else _SYSTEM_BUS


def why_none() -> str | None:
    """Why systemd cannot be asked for a scope; ``None`` where it may be."""
    if not os.path.isdir("/run/systemd/system"):
        return "systemd does not run here"
    if procfs.is_in_cgroup_namespace():
        return "it would be outside of the cgroup namespace that this process is in"
    if os.path.exists(bus_path()):
        return None
    whose = "user manager" if os.geteuid() else "system bus"
    return f"there is no {whose} to ask, as {bus_path()} does not exist"


def start_scope() -> str:
    """Put this process into a delegated scope of its own; the path of its cgroup below the mount.

    The scope lives as long as a process in it, and is collected by systemd then.

    Raises:
        CgroupError: systemd cannot be asked, or refuses; or this process is not in the scope after that; or a scope
            would be less confined than the unit that this process is in.
    """
    name = f"gwsandbox-{os.getpid()}-{procfs.start_time('self')}-{next(_numbers)}.scope"
    with _bus("start scope", name) as bus:
        own = _own_unit(bus)
        if own is not None:
            _refuse_to_lose(own, _NOT_CARRIED, "a scope")
        elif os.geteuid():
            _refuse_to_leave_unit()
        bus.start_and_wait(name, _properties(own))
    path = procfs.own_cgroup() or ""
    if os.path.basename(path) != name:
        raise CgroupError(
            "start scope: systemd has put another process into it",
            path=path,
            value=name,
            remedy=_REMEDY,
        )
    return path


def delegated_unit() -> str | None:
    """The cgroup, below the mount, of the unit that this process is in; ``None`` where it is not delegated.

    For the units of a user's manager, which unlike the system's does not mark them in the file system.
    """
    own = _find_own_unit()
    return str(own["ControlGroup"][1]) if own is not None and own["Delegate"][1] else None


def ends_with_a_task() -> bool:
    """Whether systemd ends the unit that this process is in when the kernel kills a task of it for want of memory."""
    own = _find_own_unit() or {}
    return own.get("OOMPolicy", ("s", ""))[1] in {"stop", "kill"}


def protects_cgroups() -> bool:
    """Whether ``ProtectControlGroups=`` makes cgroups read-only in this process's unit, or nobody can be asked.

    ``ReadOnlyPaths=`` does so too.
    """
    own = _find_own_unit() or {}
    return own.get("ProtectControlGroups", ("b", True))[1] is not False


def _find_own_unit() -> Unit | None:
    try:
        with _bus("find own unit", str(os.getpid())) as bus:
            return _own_unit(bus)
    except CgroupError:  # no such bus: then it is in none of its units either
        return None


Unit = dict[str, tuple[str, Any]]
"""Properties of a unit by name: the signature and the value of each."""


def _own_unit(bus: _Bus) -> Unit | None:
    """The unit that this process is in; ``None`` where it is in none of this manager's, or in a slice."""
    try:
        path = bus.call("GetUnitByPID", "u", (_SENDER,))[0]
    except OSError:
        return None
    kind = _KINDS.get(os.path.basename(path).rpartition("_2e")[2])  # D-Bus's way to write a dot in a path
    return bus.get_all(path, kind) if kind else None


def _refuse_to_leave_unit() -> None:
    """An ordinary user may be in a unit of the system's manager, while the scope is the user's own manager's.

    Raises:
        CgroupError: The unit confines what is in it.
    """
    try:
        with _bus("find own unit", str(os.getpid()), _SYSTEM_BUS) as bus:
            own = _own_unit(bus)
            usual = bus.get_all(_MANAGER["object_path"], "Manager").get("DefaultTasksMax") if own else None
    except CgroupError:  # nobody can be asked, so that nothing is known of it
        return
    if own is not None:
        if own.get("TasksMax") == usual:
            del own["TasksMax"]
        _refuse_to_lose(own, (*_CARRIED, *_NOT_CARRIED), "a scope of the user's own manager")


def _refuse_to_lose(unit: Unit, properties: Iterable[str], where: str) -> None:
    lost = [name for name in properties if _confines(name, unit)]
    if lost:
        raise CgroupError(
            f"start scope: {' and '.join(lost)} of the unit would not hold in {where}",
            path=str(unit["ControlGroup"][1]),
            remedy="set Delegate=yes in the unit",
        )


def _confines(name: str, unit: Unit) -> bool:
    value = unit.get(name, ("", None))[1]
    return value not in (None, [], b"", _NO_LIMIT, _NOTHING.get(name))


@contextlib.contextmanager
def _bus(step: str, value: str, path: str = "") -> Iterator[_Bus]:
    """A connection to systemd's manager, with its failures as errors of ours."""
    try:
        # 35 ms, only where this process was not started in a delegated cgroup.
        from jeepney.io.blocking import open_dbus_connection  # noqa: PLC0415

        with open_dbus_connection(f"unix:path={path or bus_path()}") as connection:
            yield _Bus(connection)
    except ImportError as error:
        raise CgroupError(f"{step}: jeepney is missing", value=value, remedy="pip install jeepney") from error
    except (OSError, TimeoutError) as error:
        raise CgroupError(f"{step}: {error}", path=path or bus_path(), value=value, remedy=_REMEDY) from error


class _Bus:
    """systemd's manager, as far as it is needed here. Every method raises OSError for what it refuses."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def call(self, member: str, signature: str | None = None, body: tuple[Any, ...] = ()) -> Any:
        from jeepney import DBusAddress, new_method_call  # noqa: PLC0415

        return self._send(new_method_call(DBusAddress(**_MANAGER), member, signature, body))

    def get_all(self, unit: str, kind: str) -> Unit:
        from jeepney import DBusAddress, Properties  # noqa: PLC0415

        address = DBusAddress(unit, _MANAGER["bus_name"], f"org.freedesktop.systemd1.{kind}")
        found: Unit = self._send(Properties(address).get_all())[0]
        return found

    def _send(self, message: Any) -> Any:
        from jeepney import DBusErrorResponse  # noqa: PLC0415
        from jeepney.wrappers import unwrap_msg  # noqa: PLC0415

        try:
            return unwrap_msg(self._connection.send_and_get_reply(message, timeout=_SECONDS_TO_WAIT))
        except DBusErrorResponse as error:
            raise OSError(f"systemd said {error.name}: {error.data}") from error

    def start_and_wait(self, name: str, properties: list[tuple[str, tuple[str, Any]]]) -> None:
        """Start the unit, and wait for the end of its own job; other units' jobs end meanwhile."""
        from jeepney import MatchRule  # noqa: PLC0415
        from jeepney.bus_messages import message_bus  # noqa: PLC0415

        ended = MatchRule(
            type="signal", interface=_MANAGER["interface"], member="JobRemoved", path=_MANAGER["object_path"]
        )
        # Subscribed before the call: the job of a scope may end before its answer is read.
        self._send(message_bus.AddMatch(ended))
        self.call("Subscribe")
        with self._connection.filter(ended, bufsize=1000) as jobs:
            (job,) = self.call("StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "fail", properties, []))
            deadline = time.monotonic() + _SECONDS_TO_WAIT
            path, result = "", ""
            while path != job:
                left = max(deadline - time.monotonic(), 0)
                _, path, _, result = self._connection.recv_until_filtered(jobs, timeout=left).body
            if result != "done":
                raise OSError(f"its job ended as {result!r}")


def _properties(own: Unit | None) -> list[tuple[str, tuple[str, Any]]]:
    """Those of the scope, for a process that is in the unit ``own``."""
    slice_name = SLICE
    if own is not None and (above := str(own["Slice"][1])) not in {"", _ROOT_SLICE}:
        slice_name = f"{above.removesuffix('.slice')}-{SLICE}"
    return [
        ("Description", ("s", "Sandboxed tasks of gwsandbox")),
        ("PIDs", ("au", [_SENDER])),
        ("Slice", ("s", slice_name)),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
        *((name, own[name]) for name in _CARRIED if own is not None and _confines(name, own)),
    ]


def is_manager(pid: int) -> bool:
    """Whether a process is systemd: that of the system, or of a user; 0 is one outside of this PID namespace."""
    if pid <= 1:
        return True
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read() == "systemd\n"
    except OSError:
        return False
