"""Profiles: limits under a name, in a file.

::

    # ~/.config/gwsandbox/profiles.toml, or /etc/gwsandbox/profiles.toml
    [convert]
    memory = "512MiB"
    wall_seconds = "30s"

The keys are the fields of ``Limits``, as in ``[limits]`` of the spool service. The user's own file comes first.
"""

from __future__ import annotations

import os
from typing import Any

from gwsandbox.model.limits import Limits
from gwsandbox.model.text import shown

_SYSTEM = "/etc/gwsandbox/profiles.toml"


class ProfileError(ValueError):
    """There is no such profile, or it has mistakes; the text says which."""


def profile_files() -> list[str]:
    """Where profiles are looked for, in this order."""
    own = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [os.path.join(own, "gwsandbox", "profiles.toml"), _SYSTEM]


def read_profile(name: str) -> Limits:
    """The limits of that name.

    Raises:
        ProfileError: No file has the name, a file cannot be read, or the profile has a mistake.
    """
    known: list[str] = []
    for path in profile_files():
        tables = _read(path)
        if name in tables:
            return _limits(tables[name], name, path)
        known += tables
    if known:
        raise ProfileError(f"there is no profile {name!r}; there is {', '.join(map(shown, sorted(set(known))))}")
    raise ProfileError(f"there is no profile {name!r}, and none in {' or '.join(map(shown, profile_files()))}")


def complete_profile(incomplete: str) -> list[str]:
    """The names of profiles that begin so, for the completion of a shell."""
    found: set[str] = set()
    for path in profile_files():
        try:
            found.update(_read(path))
        except ProfileError:
            continue
    return sorted(name for name in found if name.startswith(incomplete))


def _read(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ProfileError(f"{shown(path)} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ProfileError(f"{shown(path)}: {error}") from error


def _limits(table: Any, name: str, path: str) -> Limits:
    where = f"{shown(path)}: profile {name!r}"
    if not isinstance(table, dict):
        raise ProfileError(f"{where} is no table; write [{name}] and the limits below it")
    if unknown := sorted(table.keys() - set(Limits.__slots__)):
        raise ProfileError(f"{where} has no limit {shown(unknown[0])!r}; the limits are {', '.join(Limits.__slots__)}")
    try:
        return Limits(**table)
    except (TypeError, ValueError) as error:
        raise ProfileError(f"{where}: {error}") from error
