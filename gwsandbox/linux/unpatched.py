"""The standard library as it is, for a caller whose modules gevent or eventlet has patched.

Both replace attributes of modules in place, and take others away (``select.epoll``), so that what waits lets other
greenlets run. Our own processes have none. A library of that kind needs no mention here but its name.
"""

from __future__ import annotations

import importlib.util
import select
import sys
from types import ModuleType
from typing import Any

_LIBRARIES = ("gevent", "eventlet")
_USED = ("os", "select", "signal", "socket", "time")  # by supervisor and reaper, of what may be patched

_unpatched: dict[str, ModuleType] = {}
_replaced: list[tuple[ModuleType, str, Any]] = []
_MISSING = object()


def module(name: str) -> Any:
    """A module of the standard library, or a copy of it that nobody has patched where somebody has.

    Args:
        name: Of a module that is imported.
    """
    if not _patched_names(sys.modules[name]):
        return sys.modules[name]
    if name not in _unpatched:
        _unpatched[name] = _copy_os() if name == "os" else _copy(name)
        for used in _USED:
            if vars(_unpatched[name]).get(used) is sys.modules[used]:
                setattr(_unpatched[name], used, module(used))
    return _unpatched[name]


def _copy(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    patched = sys.modules[name]
    sys.modules[name] = made  # where a module that makes enums of its constants looks for itself
    try:
        spec.loader.exec_module(made)
    finally:
        sys.modules[name] = patched
    return made


def _copy_os() -> ModuleType:
    """Not run a second time, for the environment is to be the same. What waits is all of ``posix``."""
    import posix  # noqa: PLC0415 - of no other use

    made = ModuleType("os")
    vars(made).update(vars(sys.modules["os"]))
    vars(made).update({name: getattr(posix, name) for name in vars(made) if hasattr(posix, name) and name != "environ"})
    return made


def _patched_names(patched: ModuleType) -> list[str]:
    """Those of its attributes that a library of greenlets has put there; and those that it took from ``select``."""
    if not any(name in sys.modules for name in _LIBRARIES):
        return []
    owners = ((name, getattr(value, "__module__", None)) for name, value in vars(patched).items())
    found = [name for name, owner in owners if isinstance(owner, str) and owner.partition(".")[0] in _LIBRARIES]
    taken = [] if patched is not select else [name for name in ("epoll", "poll") if not hasattr(select, name)]
    return found + taken


def wait_beside_greenlets(fd: int, seconds: float | None) -> None:
    """Where the caller is patched, let its other greenlets run until ``fd`` can be read.

    Args:
        fd: Descriptor.
        seconds: How long at most; ``None`` is for ever.
    """
    if seconds != 0 and _patched_names(select):
        select.select([fd], [], [], seconds)


def restore() -> None:
    """In a process of ours that was forked from the caller: put the originals back."""
    for name in _USED:
        patched = sys.modules[name]
        names = _patched_names(patched)
        original = module(name)
        for attribute in names:
            _replaced.append((patched, attribute, getattr(patched, attribute, _MISSING)))
            setattr(patched, attribute, getattr(original, attribute))


def patch_again() -> None:
    """In the zygote: undo ``restore``. A task finds the modules as the caller had them."""
    for patched, attribute, value in _replaced:
        if value is _MISSING:
            delattr(patched, attribute)
        else:
            setattr(patched, attribute, value)
    _replaced.clear()
    _forget_greenlets()


def _forget_greenlets() -> None:
    """Let each guest have a loop of its own, where the caller's greenlets do not go on."""
    if (gevent := sys.modules.get("gevent")) is not None:
        gevent.get_hub().destroy(destroy_loop=True)
    if (hubs := sys.modules.get("eventlet.hubs")) is not None:
        hubs.use_hub()
