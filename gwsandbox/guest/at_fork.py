"""CPython's own hook for forks of a program with threads, of which the first fork of a zygote needs nothing.

``threading`` has a function called in every fork: the threads of the parent are gone there, and their locks are not.
The zygote has one thread, and forks that had more came before it, so a guest finds all as that function would leave
it. In a fresh fork each object that it looks at would be a page written: 80 page faults of 220.
"""

from __future__ import annotations

import sys
from types import CodeType, FunctionType


def spare_guests() -> None:
    """In the zygote, once: let the hook do nothing in a guest, but be itself in the guest's own forks."""
    hook = getattr(sys.modules.get("threading"), "_after_fork", None)
    if isinstance(hook, FunctionType) and _is_of_threading(hook.__code__):
        hook.__dict__["original"] = hook.__code__
        hook.__code__ = _restore.__code__


def _is_of_threading(code: CodeType) -> bool:
    """Whether it is the standard library's, and neither another library's nor ``_restore``."""
    return code.co_filename == sys.modules["threading"].__file__ and not code.co_freevars


def _restore() -> None:
    """The hook's code in a guest. It has the names of ``threading`` there."""
    _after_fork.__code__ = _after_fork.original  # type: ignore[name-defined] # noqa: F821
