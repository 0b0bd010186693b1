"""Which backend holds the limits on this host."""

from __future__ import annotations

import warnings

from gwsandbox.backends.base import Backend
from gwsandbox.backends.cgroup.backend import CgroupBackend
from gwsandbox.backends.rlimit import RlimitBackend
from gwsandbox.model.errors import CgroupError, DegradedWarning


def choose_backend(name: str, *, stacklevel: int) -> Backend:
    """The backend of that name; for "auto" the best that this host has.

    Raises:
        ValueError: There is none of that name. CgroupError: It is "cgroup", which cannot be had.
    """
    if name == "rlimit":
        return RlimitBackend()
    if name not in {"auto", "cgroup"}:
        raise ValueError(f"backend must be 'auto', 'cgroup' or 'rlimit', not {name!r}")
    try:
        return CgroupBackend.find()
    except CgroupError as error:
        if name == "cgroup":
            raise
        return degrade(error, stacklevel=stacklevel + 1)


def degrade(error: CgroupError, *, stacklevel: int) -> Backend:
    warnings.warn(
        "no cgroup v2 here, so limits are held by rlimits and sampling: memory of a tree of processes can pass "
        f"its limit for a moment, and cpus and pids are not held. {error}",
        DegradedWarning,
        stacklevel=stacklevel,
    )
    return RlimitBackend()
