"""The options of what a guest may see and do, which are the same for every command; their one definition."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from gwsandbox.model.hardening import Hardening

_KINDS: dict[str, Callable[[], Hardening]] = {
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
HARDENING_OPTIONS: dict[str, tuple[Any, Any]] = {
    "kind": (_Kind, "standard"),
    "readable": (_Readable, None),
    "writable": (_Writable, None),
    "network": (_Network, None),
    "environment": (_Environment, None),
    "user": (_User, None),
    "require": (_Require, None),
}


def make_hardening(
    kind: str,
    *,
    readable: list[str] | None,
    writable: list[str] | None,
    network: str | None,
    environment: list[str] | None,
    user: str | None,
    require: str | None,
) -> Hardening:
    """What the options mean together. Relative paths are below the current folder.

    Raises:
        typer.BadParameter: One of them is wrong.
    """
    base = _KINDS[kind]()
    changes: dict[str, Any] = {"network": network, "user": user}
    if writable:
        changes["writable"] = (*(base.writable or ()), *map(os.path.abspath, writable))
    if readable:
        changes["readable"] = (*(base.readable or ()), *map(os.path.abspath, readable))
    if environment:
        changes["environment"] = (*(base.environment or ()), *environment)
    if require is not None:
        changes["require"] = frozenset(filter(None, require.replace("none", "").split(",")))
    try:
        return dataclasses.replace(base, **{name: value for name, value in changes.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def with_hardening_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options; it receives them as ``hardening=Hardening(…)``."""
    own = inspect.signature(command, eval_str=True).parameters
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(f"hardening_{name}", kind, default=default, annotation=note)
        for name, (note, default) in HARDENING_OPTIONS.items()
    ]
    kept = [parameter.replace(kind=kind) for name, parameter in own.items() if name != "hardening"]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        chosen = {name: values.pop(f"hardening_{name}") for name in HARDENING_OPTIONS}
        command(**values, hardening=make_hardening(chosen.pop("kind"), **chosen))

    signature = inspect.Signature([*kept, *added])
    wrapper.__dict__["__signature__"] = signature
    wrapper.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return wrapper
