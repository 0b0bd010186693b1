"""``Hardening``: what a guest may see and do. Pure data; what holds it is in ``guest/confinement``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

from gwsandbox.model.limits import LARGEST_SIZE, check_count, parse_size
from gwsandbox.model.text import shorten

MECHANISMS = (
    "no_new_privs",
    "capabilities",
    "system_calls",
    "user_namespaces",
    "ptrace",
    "signals",
    "abstract_sockets",
    "own_processes",
    "processes",
    "host_name",
    "ipc",
    "control_files",
    "buses",
    "files",
    "network",
    "environment",
    "user",
    "temporary",
    "clean_interpreter",
    "results",
)
"""What ``Hardening.require`` and ``Enforcement.hardening`` name."""

OPTIONAL_MECHANISMS = ("files", "network", "environment", "user", "temporary")
"""Those of ``MECHANISMS`` that are asked for by a field of their own, and change what a program can do."""

ENFORCED = "enforced"
"""What ``Enforcement.hardening`` says of a mechanism that holds; else "partly: why" or "not: why"."""

MINIMAL_ENVIRONMENT = ("LANG", "LC_ALL", "LC_CTYPE", "PATH", "TZ")

_CHOICES = {
    "privileges": ("keep", "bound"),
    "network": ("host", "loopback", "none"),
    "syscalls": ("all", "default", "document"),
    "results": ("pickle", "plain"),
}
_USER_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,30}\$?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardening:
    """What a guest may see and do. Made by ``off``, ``standard`` or ``strict``; no arguments give ``standard``.

    Args:
        privileges: "keep": those of the caller. "bound": no privilege can be gained, what only an administrator
            of the machine needs is dropped, and nothing outside of the guest can be traced or signalled; nor can a
            guest write to the files by which it is itself controlled.
        readable: Paths that can be read, beside those that an interpreter needs; ``None``: all that the user may.
        writable: Paths that can be written to, beside the guest's own temporary folder; ``None``: all that the user
            may.
        network: "host": the caller's. "loopback": an interface of its own that leads nowhere. "none": no sockets
            but Unix ones.
        environment: Names of the environment variables that are kept; ``None``: all.
        user: "slot": a user id of its own for each guest at a time. A name: that user. ``None``: the caller.
        syscalls: "all". "default": without those that reach deep into the kernel and that programs do not need.
            "document": without sockets and the tracing of processes too, for work that turns files into files.
        temporary: Bytes of a private /tmp, /var/tmp and /dev/shm, or a text like "512MiB"; ``None``: the host's.
        results: "pickle": any value. "plain": plain data only, which cannot run code in the caller.
        require: Mechanisms, of those in ``MECHANISMS``, without which nothing is run. The others are tried.

    Raises:
        TypeError: A field is of the wrong type. ValueError: It is a word that the field does not know, a path that
            is not absolute, or a size that no machine has. Both name the field.
    """

    privileges: Literal["keep", "bound"] = "bound"
    readable: tuple[str, ...] | None = None
    writable: tuple[str, ...] | None = None
    network: Literal["host", "loopback", "none"] = "host"
    environment: tuple[str, ...] | None = None
    user: str | None = None
    syscalls: Literal["all", "default", "document"] = "default"
    temporary: int | str | None = None
    results: Literal["pickle", "plain"] = "pickle"
    require: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            _check_choice(getattr(self, name), name, choices)
        for name in ("readable", "writable"):
            object.__setattr__(self, name, _check_paths(getattr(self, name), name))
        object.__setattr__(self, "environment", _check_names(self.environment))
        object.__setattr__(self, "temporary", _check_temporary(self.temporary))
        object.__setattr__(self, "require", _check_require(self.require))
        if self.user is not None:
            _check_user(self.user)

    @classmethod
    def off(cls, **changes: Any) -> Self:
        """Nothing is taken from a guest; ``changes`` are fields that differ."""
        return cls(**{"privileges": "keep", "syscalls": "all", **changes})

    @classmethod
    def standard(cls, **changes: Any) -> Self:
        """What a program that works can do without is taken; ``changes`` are fields that differ."""
        return cls(**changes)

    @classmethod
    def strict(cls, **changes: Any) -> Self:
        """A guest gets the named things only, and every mechanism is required; ``changes`` are fields that differ."""
        fields: dict[str, Any] = {
            "readable": (),
            "writable": (),
            "network": "none",
            "environment": MINIMAL_ENVIRONMENT,
            "syscalls": "document",
            "temporary": 1 << 30,
            "results": "plain",
            **changes,
        }
        made = cls(**fields)
        return made if "require" in changes else cls(**{**fields, "require": made.mechanisms()})

    def mechanisms(self) -> frozenset[str]:
        """Those of ``MECHANISMS`` that this asks for."""
        asked = {
            "files": self.readable is not None or self.writable is not None,
            "network": self.network != "host",
            "environment": self.environment is not None,
            "user": self.user is not None,
            "temporary": self.temporary is not None,
            "system_calls": self.syscalls != "all",
            "user_namespaces": self.syscalls != "all",
            "results": self.results == "plain",
            "clean_interpreter": self.needs_clean_interpreter,
            "processes": self.isolates,
            "host_name": self.isolates,
        }
        bound = self.privileges == "bound"
        return frozenset(name for name in MECHANISMS if asked.get(name, bound))

    @property
    def isolates(self) -> bool:
        """Whether guests get a root folder, a list of processes and a host name of the run's own."""
        return self.readable is not None and self.privileges == "bound"

    @property
    def needs_clean_interpreter(self) -> bool:
        """Whether a fork of the caller would hold what the guest must not see."""
        return self.readable is not None


def check_hardening(hardening: Hardening | None) -> Hardening:
    """``hardening``, or ``standard`` where there is none.

    Raises:
        TypeError: It is neither ``Hardening`` nor ``None``.
    """
    if hardening is None:
        return Hardening.standard()
    if not isinstance(hardening, Hardening):
        raise TypeError(
            f"hardening must be gwsandbox.Hardening or None, not {type(hardening).__name__}: {shorten(hardening)}"
        )
    return hardening


def _check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(choices)}, not {type(value).__name__}: {shorten(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {shorten(value)}")


def _elements(value: object, name: str, what: str) -> tuple[object, ...]:
    if isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f"{name} must be several {what}, as in {name}=({shorten(value)},), and not one")
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be {what} or None, not {type(value).__name__}: {shorten(value)}")
    return tuple(value)


def _check_paths(value: object, name: str) -> tuple[str, ...] | None:
    return None if value is None else tuple(_check_path(path, name) for path in _elements(value, name, "paths"))


def _check_path(path: object, name: str) -> str:
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"{name} must hold paths, not {type(path).__name__}: {shorten(path)}")
    text = os.fsdecode(path)
    if not os.path.isabs(text) or "\0" in text:
        raise ValueError(f"{name} must hold absolute paths, not {shorten(text)}")
    return os.path.normpath(text)


def _check_names(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = []
    for name in _elements(value, "environment", "names"):
        if not isinstance(name, str):
            raise TypeError(f"environment must hold names of variables, not {type(name).__name__}: {shorten(name)}")
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"environment must hold names of variables, not {shorten(name)}")
        names.append(name)
    return tuple(names)


def _check_temporary(value: object) -> int | None:
    if isinstance(value, str):
        value = parse_size(value, "temporary")
    if value is None:
        return None
    size = check_count(value, "temporary")
    if size > LARGEST_SIZE:
        raise ValueError(f"temporary of {size} bytes is more than any machine has ({LARGEST_SIZE})")
    return size or None


def _check_require(value: object) -> frozenset[str]:
    names = _elements(value, "require", "mechanisms")
    for name in names:
        if name not in MECHANISMS:
            raise ValueError(f"require must hold some of {', '.join(MECHANISMS)}; not {shorten(name)}")
    return frozenset(map(str, names))


def _check_user(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"user must be 'slot', the name of a user, or None, not {type(value).__name__}")
    if not _USER_NAME.fullmatch(value):
        raise ValueError(f"user must be 'slot' or the name of a user, not {shorten(value)}")
