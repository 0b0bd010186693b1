"""A root folder of its own for a process and what descends from it: only what is shown there can be named.

Its /proc shows those processes only that may be traced.

The root is an empty file system of memory. What is shown is bound into it at its own path, links on the way there
included, and all of it is read-only but for what may be written to. Nothing of the machine's other files has a name
there: not their contents, and not that they exist.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gwsandbox.linux import confine, namespaces

_MOST_LINKS = 40  # on the way to a file, as the kernel has it
_PLACES = ("/tmp", "/mnt", "/run", "/usr")  # noqa: S108 - one of them is covered for a moment, nothing is written there
_SIZE = "size=1m,mode=0755"  # of what holds no more than names
_NO_GROUP = 65534
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"}
# What root may read there without a capability, and is about the machine and not about the guest.
_MASKED = (
    *("kcore", "keys", "key-users", "kpagecount", "kpageflags", "kpagecgroup", "kallsyms", "timer_list", "slabinfo"),
    *("sched_debug", "vmallocinfo", "pagetypeinfo", "sysrq-trigger", "iomem", "ioports", "modules", "allocinfo"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is seen in a root of its own.

    Args:
        paths: Absolute paths that are shown, each with whether it can be written to; what is not there is left out.
        files: The texts of further files, by path.
        folders: Further folders, all empty.
        links: Further symbolic links, by path.
    """

    paths: Mapping[str, bool]
    files: Mapping[str, str] = field(default_factory=dict)
    folders: Collection[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)


def enter(view: View) -> None:
    """Have this process see nothing but a view, with a /proc of its PID namespace and a few devices.

    Raises:
        OSError: It is not permitted, or all of ``/`` is to be shown.
    """
    if any(os.path.realpath(path) == "/" for path in view.paths):
        raise OSError("own root: all of / is to be shown")
    confine.unshare(confine.CLONE_NEWNS)
    confine.mount("", "/", "", confine.MS_REC | confine.MS_PRIVATE)
    _Root(view).enter()


def way(path: str) -> tuple[str, dict[str, str]]:
    """Where an absolute path leads, and the symbolic links on the way there with their targets."""
    links: dict[str, str] = {}
    here, names = "/", [name for name in reversed(path.split("/")) if name not in {"", "."}]
    for _ in range(_MOST_LINKS):
        while names:
            name = names.pop()
            here = os.path.dirname(here) if name == ".." else os.path.join(here, name)
            if name != ".." and os.path.islink(here):
                break
        else:
            return here, links
        links[here] = target = os.readlink(here)
        here = "/" if target.startswith("/") else os.path.dirname(here)
        names += [name for name in reversed(target.split("/")) if name not in {"", "."}]
    return here, links


class _Root:
    """The new root while it is made, at a folder of the old one."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._links = {**_LINKS, **view.links}
        found: dict[str, bool] = {}
        for path, writable in view.paths.items():
            real, links = way(path)
            found[real] = found.get(real, False) or writable
            self._links |= links
        self._shown = {path: writable for path, writable in sorted(found.items()) if os.path.lexists(path)}
        self._bound: dict[str, bool] = {}
        self._base = next(place for place in _PLACES if os.path.isdir(place))

    def enter(self) -> None:
        # Before the base is covered, as some of them may be below it; after the mounts have become our own.
        sources = {path: os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC) for path in self._shown}
        devices = {f"/dev/{name}": os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC) for name in _DEVICES}
        confine.mount("none", self._base, "tmpfs", confine.MS_NOSUID | confine.MS_NODEV, _SIZE)
        try:
            self._build(sources, devices)
            os.chdir(self._base)
            confine.pivot_root(".", ".")
        except OSError:
            confine.umount2(self._base, confine.MNT_DETACH)
            raise
        finally:
            for fd in (*sources.values(), *devices.values()):
                os.close(fd)
        confine.umount2(".", confine.MNT_DETACH)
        os.chdir("/")
        self._make_read_only(devices)

    def _build(self, sources: Mapping[str, int], devices: Mapping[str, int]) -> None:
        for path, fd in sources.items():
            if self._shown[path] or not self._is_shown(path):
                self._bind(path, fd)
                self._bound[path] = self._shown[path]
        for path, fd in devices.items():
            self._bind(path, fd)
        self._fill()
        # While the old one is there: who is no root may only mount what is seen in full already.
        self._mount_proc()

    def _is_shown(self, path: str) -> bool:
        """Whether it is below what is bound already."""
        return any(path.startswith(f"{above}/") for above in self._bound)

    def _bind(self, path: str, fd: int) -> None:
        source = f"/proc/self/fd/{fd}"
        self._make_place(path, is_folder=os.path.isdir(source))
        confine.mount(source, self._base + path, "", confine.MS_BIND | confine.MS_REC)

    def _make_place(self, path: str, *, is_folder: bool) -> None:
        """Something to mount on; below what is shown it is there already, and nothing is made in that."""
        if self._is_shown(path):
            return
        os.makedirs(self._base + (path if is_folder else os.path.dirname(path)), mode=0o755, exist_ok=True)
        if not is_folder:
            os.close(os.open(self._base + path, os.O_CREAT | os.O_CLOEXEC, 0o444))

    def _fill(self) -> None:
        for path in (*self._view.folders, "/proc", "/dev"):
            self._make_place(path, is_folder=True)
        for path, text in self._view.files.items():
            if not os.path.lexists(self._base + path) and not self._is_shown(path):
                self._make_place(os.path.dirname(path), is_folder=True)
                with open(self._base + path, "w", encoding="utf-8") as file:
                    file.write(text)
        for path, target in self._links.items():
            if not os.path.lexists(self._base + path) and not self._is_shown(path):
                self._make_place(os.path.dirname(path), is_folder=True)
                os.symlink(target, self._base + path)

    def _mount_proc(self) -> None:
        flags = confine.MS_NOSUID | confine.MS_NODEV | confine.MS_NOEXEC
        hidden = "hidepid=2"  # by number: by name from Linux 5.8 on
        if os.getegid() == 0 and _is_initial_user_namespace():
            hidden += f",gid={_NO_GROUP}"  # or all are shown to the group of root
        confine.mount("proc", self._base + "/proc", "proc", flags, hidden)

    def _make_read_only(self, devices: Iterable[str]) -> None:
        for name in _MASKED:
            with contextlib.suppress(FileNotFoundError):
                confine.mount("/dev/null", f"/proc/{name}", "", confine.MS_BIND)
        # Forbidden by seccomp too; and by nothing else to who has all capabilities in his own user namespace.
        with contextlib.suppress(OSError), open("/proc/sys/user/max_user_namespaces", "w", encoding="ascii") as file:
            if os.path.exists("/proc/self/uid_map") and not _is_initial_user_namespace():
                file.write("0")
        kept = {*devices, *(path for path, writable in self._bound.items() if writable)}
        for mount in reversed(list(namespaces.mounts())):  # the root last
            if _is_below(mount.path, kept, self._bound):
                flags = mount.flags | (0 if mount.path in devices else confine.MS_NODEV) | confine.MS_NOSUID
            else:
                flags = mount.flags | confine.MS_RDONLY | confine.MS_NOSUID
            confine.mount("", mount.path, "", confine.MS_REMOUNT | confine.MS_BIND | flags)


def _is_initial_user_namespace() -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def _is_below(path: str, kept: Collection[str], bound: Mapping[str, bool]) -> bool:
    """Whether the nearest of what is bound at or above a mount can be written to."""
    for above in _upwards(path):
        if above in kept:
            return True
        if above in bound:
            return False
    return False


def _upwards(path: str) -> Iterator[str]:
    while path != "/":
        yield path
        path = os.path.dirname(path)
