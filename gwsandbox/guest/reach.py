"""Which files a guest reaches where only some are given: as a root of its own, else as rules for Landlock.

Beside what the user named, an interpreter and most programs need what stands here: their own files, the libraries'
settings, certificates, fonts, and the devices that hold nothing.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator

from gwsandbox.linux import landlock
from gwsandbox.linux.own_root import View
from gwsandbox.model.hardening import Hardening

_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/java-*-openjdk"),
    *("/etc/localtime", "/etc/timezone", "/etc/locale.alias", "/etc/locale.conf", "/etc/default/locale"),
    *("/etc/fonts", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki", "/etc/ca-certificates"),
    *("/etc/crypto-policies", "/etc/nsswitch.conf", "/etc/mime.types", "/etc/magic", "/etc/ImageMagick-*"),
    *("/etc/papersize", "/etc/paperspecs", "/etc/libreoffice", "/var/cache/fontconfig", "/var/lib/ghostscript"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node"),
)
_SHARED = ("/etc/passwd", "/etc/group", "/proc")  # a view has its own of these
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - where programs put their temporary files
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def file_rules(hardening: Hardening, modules: Iterable[str]) -> dict[str, int]:
    """For each path the rights of ``landlock`` that a guest has at and below it.

    Args:
        hardening: Of the run; at least one of ``readable`` and ``writable`` is said.
        modules: Files and folders of modules that the caller has loaded.
    """
    rules = dict.fromkeys(_DEVICES, landlock.READ | landlock.WRITE)
    if hardening.readable is not None:
        given = (*interpreter(), *_matching((*_SYSTEM, *_SHARED)), *modules, *hardening.readable)
        for path in set(map(os.path.realpath, given)):
            rules[path] = rules.get(path, 0) | landlock.READ
        for path in modules:  # a module is found by the names in its folder
            folder = os.path.dirname(os.path.realpath(path))
            rules[folder] = rules.get(folder, 0) | landlock.READ_DIR
    for path in map(os.path.realpath, hardening.writable or ()):
        rules[path] = landlock.READ | landlock.WRITE | landlock.RESOLVE_UNIX
    return rules


def view(hardening: Hardening, modules: Iterable[str], users: Iterable[int]) -> View:
    """The same as what is seen in a root of one's own; /etc/passwd and /etc/group have no more than they must.

    Args:
        hardening: Of the run; ``readable`` is said.
        modules: Files and folders of modules that the caller has loaded.
        users: Ids of users that guests may be, beside the caller's.
    """
    given = (*interpreter(), *_matching(_SYSTEM), *modules, *(hardening.readable or ()))
    paths = dict.fromkeys(given, False) | dict.fromkeys(hardening.writable or (), True)
    paths = {path: writable for path, writable in paths.items() if not f"{path}/".startswith(("/proc/", "/dev/pts/"))}
    ids = {os.getuid(): "caller", 0: "root", **{uid: f"guest{uid}" for uid in users}, 65534: "nobody"}
    user = [f"{name}:x:{uid}:{uid}::/tmp:/bin/sh\n" for uid, name in ids.items()]
    groups = {os.getgid(): "caller", **{uid: name for uid, name in ids.items() if name != "caller"}}
    # Folders of their own stand for these where something below them is shown.
    linked = [path for path in TEMPORARY[1:] if not any(name.startswith(f"{path}/") for name in paths)]
    return View(
        paths={path: writable for path, writable in paths.items() if path not in TEMPORARY},
        files={
            "/etc/passwd": "".join(user),
            "/etc/group": "".join(f"{name}:x:{gid}:\n" for gid, name in groups.items()),
            "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
        },
        folders=(*(path for path in TEMPORARY if path not in linked), "/run"),
        links=dict.fromkeys(linked, TEMPORARY[0]),
    )


def interpreter() -> Iterator[str]:
    """Where it is, what it is started by, and the folders for its packages."""
    yield from {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix} - {"/"}
    yield from (path for path in sys.path if os.path.basename(path) in {"site-packages", "dist-packages"})
    if sys.executable:
        yield sys.executable
        yield os.path.dirname(os.path.realpath(sys.executable))


def _matching(patterns: Iterable[str]) -> Iterator[str]:
    for pattern in patterns:
        yield from glob.glob(pattern) if "*" in pattern else (pattern,)


def loaded_modules() -> tuple[str, ...]:
    """In the caller: where the modules are that it has loaded. Of a package its folder, of another its file."""
    found: set[str] = set()
    for module in list(sys.modules.values()):
        folders = getattr(module, "__path__", None)
        file = getattr(module, "__file__", None)
        if folders is not None:
            found.update(str(folder) for folder in folders)
        elif isinstance(file, str):
            found.add(file)
    return tuple(sorted(map(os.path.abspath, found)))
