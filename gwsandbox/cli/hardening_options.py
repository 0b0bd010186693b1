"""The options of what a guest may see and do, which are the same for every command; their one definition."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from gwsandbox.cli.option_groups import OptionGroup, option
from gwsandbox.model.hardening import Hardening

_KINDS: dict[str, Callable[..., Hardening]] = {
    "off": Hardening.off,
    "standard": Hardening.standard,
    "strict": Hardening.strict,
}
_Kind = Annotated[
    Literal["off", "standard", "strict"],
    typer.Option(
        "--hardening",
        help="off: nothing is taken. standard: what a program that works does not need. strict: only what is named.",
    ),
]
_Readable = Annotated[list[str] | None, typer.Option("--ro", metavar="PATH", help="May be read; can be repeated.")]
_Writable = Annotated[list[str] | None, typer.Option("--rw", metavar="PATH", help="May be read and written to.")]
_Network = Annotated[
    Literal["host", "loopback", "none"] | None,
    typer.Option("--network", show_default=False, help="host: the machine's. loopback: one of its own. none."),
]
_Environment = Annotated[
    list[str] | None, typer.Option("--env", metavar="NAME", help="Variable that is kept; can be repeated.")
]
_Syscalls = Annotated[
    Literal["all", "default", "document"] | None,
    typer.Option(
        "--syscalls",
        show_default=False,
        help="default: none that reach deep into the kernel. document: no sockets without a network either.",
    ),
]
_Require = Annotated[
    str | None,
    typer.Option(
        "--require",
        metavar="NAME,…",
        show_default=False,
        help="Mechanisms without which nothing is run. Default: all that strict asks for; 'none' only tries them.",
    ),
]
_User = Annotated[
    str | None, typer.Option("--user", metavar="NAME", help="slot: a user id of its own for each slot. Or a user.")
]


def _make_hardening(
    *,
    hardening_kind: str,
    readable: list[str] | None,
    writable: list[str] | None,
    network: str | None,
    environment: list[str] | None,
    user: str | None,
    syscalls: str | None,
    require: str | None,
) -> Hardening:
    """What the options mean together. Relative paths are below the current folder.

    Raises:
        typer.BadParameter: One of them is wrong.
    """
    base = _KINDS[hardening_kind]()
    changes: dict[str, Any] = {"network": network, "user": user, "syscalls": syscalls}
    if writable:
        changes["writable"] = (*(base.writable or ()), *map(os.path.abspath, writable))
    if readable:
        changes["readable"] = (*(base.readable or ()), *map(os.path.abspath, readable))
    if environment:
        changes["environment"] = (*(base.environment or ()), *environment)
    if require is not None:
        changes["require"] = frozenset(filter(None, require.replace("none", "").split(",")))
    try:
        return _KINDS[hardening_kind](**{name: value for name, value in changes.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


HARDENING = OptionGroup(
    "Hardening",
    (
        option("hardening_kind", _Kind, "standard"),
        option("readable", _Readable),
        option("writable", _Writable),
        option("network", _Network),
        option("environment", _Environment),
        option("user", _User),
        option("syscalls", _Syscalls),
        option("require", _Require),
    ),
    _make_hardening,
)
