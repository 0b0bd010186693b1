"""What a process of root's can take from itself and what descends from it: views of mounts, and capabilities.

Both are inherited, so the zygote does it once and no guest pays for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gwsandbox.linux import confine

# include/uapi/linux/capability.h
CAPABILITIES = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner"),
    *("sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice"),
    *("sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap"),
    *("mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf"),
    "checkpoint_restore",
)


def numbers(names: Iterable[str]) -> int:
    """Capabilities by name as bits."""
    return sum(1 << CAPABILITIES.index(name) for name in names)


def keep_capabilities(kept: int, *, for_itself: int = 0) -> None:
    """Give up all capabilities but those of ``kept``, of this process and of any program that descends from it.

    Args:
        kept: A bit each.
        for_itself: Those that only this process keeps, and what is forked from it.

    Raises:
        OSError: Some can come back, as this process may not take them from its bounding set.
    """
    effective, permitted, inheritable = confine.capget()
    with contextlib.suppress(OSError):  # before Linux 4.3 there are none
        confine.clear_ambient()
    missing: OSError | None = None
    for number in _bounding():  # first, as it needs one of them (setpcap)
        if not kept >> number & 1:
            try:
                confine.drop_bounding(number)
            except OSError as error:
                missing = error
    left = kept | for_itself
    confine.capset(effective & left, permitted & left, inheritable & kept)
    # An ordinary user may not shrink the set; under no_new_privs no program brings anything back from it then.
    if missing is not None and permitted:
        raise missing


def _bounding() -> Iterator[int]:
    """The capabilities that programs can have."""
    number = 0
    with contextlib.suppress(OSError):  # EINVAL: this kernel knows no more
        while True:
            if confine.in_bounding(number):
                yield number
            number += 1


def own_user_namespace() -> None:
    """A user namespace with this process's own user and group in it, in which it has all capabilities.

    Afterwards no other process of the user's may look into this one.

    Raises:
        OSError: It is not permitted; says what may permit it.
    """
    uid, gid = os.geteuid(), os.getegid()
    confine.apply(confine.prepare_dumpable(dumpable=True), "prctl")  # or the files below are root's
    try:
        confine.unshare(confine.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        confine.unshare(confine.CLONE_NEWUTS)  # AppArmor may permit a namespace, and nothing in it
    except OSError as error:
        reason = f"no user namespace ({error.strerror}); {_what_permits_user_namespaces()}"
        raise OSError(error.errno, reason) from None
    finally:
        confine.apply(confine.prepare_dumpable(dumpable=False), "prctl")


def _what_permits_user_namespaces() -> str:
    for name, value in _USER_NAMESPACES.items():
        with contextlib.suppress(OSError), open(f"/proc/sys/{name}", encoding="ascii") as file:
            if (file.read().strip() == "0") is (value != "0"):
                return f"sysctl {name.replace('/', '.')}={value} permits it"
    return "a container permits it by its seccomp profile"


_USER_NAMESPACES = {
    "kernel/unprivileged_userns_clone": "1",  # Debian
    "kernel/apparmor_restrict_unprivileged_userns": "0",  # Ubuntu
    "user/max_user_namespaces": "65536",
}


def private_network(*, loopback: bool) -> None:
    """A network of its own: with a loopback interface and nothing else, or with nothing that is up.

    Raises:
        OSError: It is not permitted.
    """
    confine.unshare(confine.CLONE_NEWNET)
    if not loopback:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _INTERFACE_REQUEST.pack(b"lo", _IFF_UP | _IFF_RUNNING))


_SIOCSIFFLAGS = 0x8914  # include/uapi/linux/sockios.h
_IFF_UP, _IFF_RUNNING = 0x1, 0x40  # include/uapi/linux/if.h
_INTERFACE_REQUEST = struct.Struct("=16sh22x")  # struct ifreq: name, flags


class Mount(NamedTuple):
    """A mount, as /proc/self/mountinfo shows it: where it is, of what file system, and with what options of its own."""

    path: str
    kind: str
    options: bytes

    @property
    def flags(self) -> int:
        """Its options for mount(2)."""
        return sum(_FLAGS.get(option, 0) for option in self.options.split(b","))


_FLAGS = {
    b"ro": confine.MS_RDONLY,
    b"nosuid": confine.MS_NOSUID,
    b"nodev": confine.MS_NODEV,
    b"noexec": confine.MS_NOEXEC,
}


def mounts() -> Iterator[Mount]:
    """All mounts that this process sees, those below others after them; none without /proc."""
    with contextlib.suppress(FileNotFoundError), open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            place, _, what = line.partition(b" - ")
            _, _, _, _, path, options, *_ = place.split()
            yield Mount(_unescape(path), what.split()[0].decode(errors="replace"), options)


def _unescape(path: bytes) -> str:
    """Spaces, tabs, line breaks and backslashes are written in octal there."""
    for char in b" \t\n\\" if b"\\" in path else b"":
        path = path.replace(b"\\%03o" % char, bytes([char]))
    return os.fsdecode(path)


def private_mounts() -> None:
    """Give this process mounts of its own: new mounts of others still appear, new ones of its own stay here.

    Raises:
        OSError: It is not permitted.
    """
    confine.unshare(confine.CLONE_NEWNS)
    confine.mount("", "/", "", confine.MS_REC | confine.MS_SLAVE)


def make_read_only(path: str) -> None:
    """Nothing at or below a path can be written to by way of it, other mounts there included.

    Raises:
        OSError: It is not permitted.
    """
    if path not in {mount.path for mount in mounts()}:
        confine.mount(path, path, "", confine.MS_BIND | confine.MS_REC)
    found = [mount for mount in mounts() if mount.path == path or mount.path.startswith(f"{path}/")]
    if not found:
        raise OSError(errno.EOPNOTSUPP, f"mount: what is mounted at {path} is not known without /proc")
    for mount in found:
        # By mount(2) and not by mount_setattr, which takes all in one call from Linux 5.12 on.
        confine.mount("", mount.path, "", confine.MS_REMOUNT | confine.MS_BIND | confine.MS_RDONLY | mount.flags)


def make_private(path: str, size: int, kept: Iterable[str]) -> None:
    """Put an empty folder of memory in the place of a folder.

    Args:
        path: Of the folder.
        size: Bytes that it can hold.
        kept: Paths that are seen below it as before.

    Raises:
        OSError: It is not permitted. FileNotFoundError: There is no such folder.
    """
    below = [name for name in kept if name.startswith(f"{path}/")]
    seen = [(name, os.open(name, os.O_PATH | os.O_CLOEXEC)) for name in below if os.path.exists(name)]
    confine.mount("none", path, "tmpfs", confine.MS_NOSUID | confine.MS_NODEV, f"mode=1777,size={size}")
    for name, fd in seen:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            os.makedirs(name, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(name), exist_ok=True)
            os.close(os.open(name, os.O_CREAT | os.O_CLOEXEC, 0o600))
        confine.mount(f"/proc/self/fd/{fd}", name, "", confine.MS_BIND | confine.MS_REC)
        os.close(fd)


def hide(path: str) -> None:
    """Put an empty folder, or a device that cannot be connected to, in the place of a path.

    Raises:
        OSError: It is not permitted. FileNotFoundError: There is nothing.
    """
    if os.path.isdir(path):
        flags = confine.MS_NOSUID | confine.MS_NODEV | confine.MS_NOEXEC | confine.MS_RDONLY
        confine.mount("none", path, "tmpfs", flags, "mode=0555,size=4k")
    else:
        confine.mount("/dev/null", path, "", confine.MS_BIND)
