"""Which files a guest reaches where only some are given, as rules for Landlock.

Beside what the user named, an interpreter and most programs need what stands here: their own files, the libraries'
settings, certificates, fonts, and the devices that hold nothing.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator

from gwsandbox.linux import landlock
from gwsandbox.model.hardening import Hardening

_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/java-*-openjdk"),
    *("/etc/localtime", "/etc/timezone", "/etc/locale.alias", "/etc/locale.conf", "/etc/default/locale"),
    *("/etc/fonts", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki", "/etc/ca-certificates"),
    *(
        "/etc/crypto-policies",
        "/etc/passwd",
        "/etc/group",
        "/etc/nsswitch.conf",
        "/etc/mime.types",
        "/etc/magic",
        "/etc/ImageMagick-*",
    ),
    *("/etc/papersize", "/etc/paperspecs", "/etc/libreoffice", "/var/cache/fontconfig", "/var/lib/ghostscript"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node", "/proc"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def file_rules(hardening: Hardening, modules: Iterable[str]) -> dict[str, int]:
    """For each path the rights of ``landlock`` that a guest has at and below it.

    Args:
        hardening: Of the run; at least one of ``readable`` and ``writable`` is said.
        modules: Files and folders of modules that the caller has loaded.
    """
    rules = dict.fromkeys(_DEVICES, landlock.READ | landlock.WRITE)
    if hardening.readable is not None:
        for path in {*_interpreter(), *_resolved(_SYSTEM), *modules, *_resolved(hardening.readable)}:
            rules[path] = rules.get(path, 0) | landlock.READ
        for path in modules:  # a module is found by the names in its folder
            folder = os.path.dirname(path)
            rules[folder] = rules.get(folder, 0) | landlock.READ_DIR
    for path in _resolved(hardening.writable or ()):
        rules[path] = landlock.READ | landlock.WRITE | landlock.RESOLVE_UNIX
    return rules


def _interpreter() -> Iterator[str]:
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    yield from _resolved(path for path in prefixes if path != "/")
    if sys.executable:
        yield os.path.dirname(os.path.realpath(sys.executable))


def _resolved(patterns: Iterable[str]) -> Iterator[str]:
    """Resolve patterns and links: Landlock's rules hold for files and folders, not for names."""
    for pattern in patterns:
        for path in glob.glob(pattern) if "*" in pattern else (pattern,):
            yield os.path.realpath(path)


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
    return tuple(sorted(os.path.realpath(path) for path in found))
