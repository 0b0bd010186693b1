"""Option groups: options that mean something together, defined once and taken by any command.

A command takes a group by the annotation of one parameter, ``limits: Annotated[ChosenLimits, LIMITS]``, and receives
what the group builds of its options.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from typer.models import OptionInfo

_KIND = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """Some options, and what they become.

    Args:
        panel: Title above the options in the help; empty: that of the single option, or none.
        options: For each option the name by which ``build`` takes it, its annotation and its default.
        build: Called with the values, by name. It may raise ``typer.BadParameter``.
    """

    panel: str
    options: tuple[inspect.Parameter, ...]
    build: Callable[..., Any]

    def __post_init__(self) -> None:
        for option in self.options:
            for info in get_args(option.annotation):
                if isinstance(info, OptionInfo):
                    info.rich_help_panel = info.rich_help_panel or self.panel


def option(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """An option of a group."""
    return inspect.Parameter(name, _KIND, default=default, annotation=annotation)


def group_of(kind: type, panel: str) -> OptionGroup:
    """The fields of a dataclass, each annotated with its option, as a group that builds the dataclass."""
    found = inspect.signature(kind, eval_str=True).parameters.values()
    return OptionGroup(panel, tuple(field.replace(kind=_KIND) for field in found), kind)


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options of its groups, each group in the place of its parameter."""
    own = inspect.signature(command, eval_str=True).parameters
    groups = {name: group for name, parameter in own.items() if (group := _group(parameter)) is not None}
    flat: list[inspect.Parameter] = []
    for name, parameter in own.items():
        flat += groups[name].options if name in groups else [parameter.replace(kind=_KIND)]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group.build(**_taken(values, group.options))
        command(**values)

    signature = inspect.Signature(flat)
    wrapper.__dict__["__signature__"] = signature
    wrapper.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return wrapper


def _taken(values: dict[str, Any], options: Sequence[inspect.Parameter]) -> dict[str, Any]:
    return {option.name: values.pop(option.name) for option in options}


def _group(parameter: inspect.Parameter) -> OptionGroup | None:
    if get_origin(parameter.annotation) is not Annotated:
        return None
    return next((extra for extra in get_args(parameter.annotation) if isinstance(extra, OptionGroup)), None)
