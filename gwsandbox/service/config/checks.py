"""Checks for the values of the configuration: each returns the value as the service uses it, or raises."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from typing import Any

from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Outcome

Check = Callable[[Any], Any]

_LARGEST_PORT = 65535


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str):
        raise TypeError(f"must be a text in quotes, not {value!r}")
    if not value or "\0" in value:
        raise ValueError("must not be empty, nor hold a NUL")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list):
        raise TypeError(f'must be a list, as in ["a", "b"], not {value!r}')
    return tuple(map(text, value))


def absolute(value: Any) -> str:
    """An absolute path, as the folder in which a service starts is unknown."""
    path = text(value)
    if not os.path.isabs(path):
        raise ValueError(f"must be an absolute path, which starts with /, not {path!r}")
    return os.path.normpath(path)


def paths(value: Any) -> tuple[str, ...]:
    """A list of existing folders."""
    found = tuple(map(absolute, texts(value)))
    for path in found:
        if not os.path.isdir(path):
            raise ValueError(f"there is no folder {path}")
    return found


def variables(value: Any) -> tuple[str, ...]:
    """A list of names of environment variables."""
    found = texts(value)
    if wrong := [name for name in found if "=" in name]:
        raise ValueError(f"must be names without their values, not {wrong[0]!r}")
    return found


def one_of(*allowed: str) -> Check:
    """One of these words."""

    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}, not {value!r}")
        return text(value)

    return check


def hardening(field: str) -> Check:
    """One field of ``Hardening``."""

    def check(value: Any) -> Any:
        return getattr(Hardening(**{field: value}), field)

    return check


def count_from(least: int) -> Check:
    """A whole number, from ``least`` on."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"must be a whole number, {least} or more, not {value!r}")
        return value

    return check


def limit(name: str) -> Check:
    """A field of ``Limits``, which checks itself."""

    def check(value: Any) -> Any:
        try:
            return getattr(Limits(**{name: value}), name)
        except (TypeError, ValueError) as error:
            raise type(error)(re.sub(rf"^{name}(:| (?=must))\s*", "", str(error))) from error

    return check


seconds: Check = limit("wall_seconds")
"""A number of seconds, or a text such as ``"5s"`` or ``"2m"``."""

size: Check = limit("memory")
"""A number of bytes, or a text such as ``"512MiB"``."""


def outcomes(value: Any) -> frozenset[Outcome]:
    """Names of outcomes after which a file may be tried again."""
    never = {Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.SANDBOX_ERROR}
    allowed = {outcome.name: outcome for outcome in Outcome if outcome not in never}
    if unknown := [name for name in texts(value) if name not in allowed]:
        raise ValueError(f"{', '.join(unknown)} is not among {', '.join(allowed)}")
    return frozenset(allowed[name] for name in value)


def function_name(value: Any) -> str:
    """``MODULE:FUNCTION``."""
    module, _, function = text(value).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise ValueError(f'must be "MODULE:FUNCTION", as in "package.module:convert", not {value!r}')
    return str(value)


def command(value: Any) -> tuple[str, ...]:
    """An existing program and its arguments, as a list or in one text with a shell's quotes."""
    words = tuple(shlex.split(value)) if isinstance(value, str) else texts(value)
    if not words:
        raise ValueError("must name a program")
    for placeholder in ("{input}", "{output}"):
        if not any(placeholder in word for word in words[1:]):
            raise ValueError(f"must have {placeholder} among its arguments, where that path goes")
    if shutil.which(words[0]) is None:
        raise ValueError(f"there is no program {words[0]!r} that could be executed; write its whole path")
    return words


def suffix(value: Any) -> str:
    """The end of a file's name."""
    if not re.fullmatch(r"(\.[A-Za-z0-9]{1,16}){1,2}", text(value)):
        raise ValueError(f'must be a point and up to 16 letters or digits, as in ".pdf", not {value!r}')
    return str(value)


def port(value: Any) -> int:
    """A TCP port."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST_PORT:
        raise ValueError(f"must be a number from 1 to {_LARGEST_PORT}, not {value!r}")
    return value


def textfile(value: Any) -> str:
    """A file that node_exporter reads, in an existing folder."""
    path = absolute(value)
    if not path.endswith(".prom"):
        raise ValueError(f"must end in .prom, or node_exporter does not read it: {value!r}")
    if not os.path.isdir(os.path.dirname(path)):
        raise ValueError(f"there is no folder {os.path.dirname(path)}")
    return path
