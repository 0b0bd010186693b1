"""What --explain and --verbose say before anything starts."""

from __future__ import annotations

from collections.abc import Iterable

from gwsandbox.backends.choose import find_backend, rlimit_degrades
from gwsandbox.cli.options import BackendName
from gwsandbox.cli.streams import print_lines
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import OPTIONS, Limits
from gwsandbox.model.text import format_size, shown

_SIZES = frozenset({"memory", "swap", "file_size", "output"})
_SECONDS = frozenset({"wall_seconds", "cpu_seconds"})


def limit_lines(limits: Limits, name: BackendName) -> list[str]:
    """The backend that would hold ``limits``, and each of these with what is wanting in how it is held.

    Raises:
        CgroupError: ``name`` is "cgroup", which this host has not.
    """
    backend, refused = find_backend(name)
    lines = [f"backend: {backend.name}" + ("" if refused is None else f", as there is no cgroup: {refused}")]
    degraded = rlimit_degrades(limits) if backend.name == "rlimit" else {}
    for limit, value in limits.requested().items():
        remark = f" (not fully: {degraded[limit]})" if limit in degraded else ""
        lines.append(f"limit {OPTIONS[limit]} {say_limit(limit, value)}{remark}")
    return lines


def hardening_line(hardening: Hardening) -> str:
    """What the guest is denied."""
    return f"hardening: {', '.join(sorted(hardening.mechanisms())) or 'none'}"


def say_limit(name: str, value: float) -> str:
    """A limit for people: "512 MiB", "5 s"."""
    if name in _SIZES:
        return format_size(value)
    return f"{value:g} s" if name in _SECONDS else f"{value:g}"


def print_plan(lines: Iterable[str]) -> None:
    """Print a plan on stdout.

    Raises:
        Failure: It cannot be written.
    """
    print_lines("\n".join([*map(shown, lines), "nothing was started (--explain)"]))
