"""Which backend holds the limits on this host."""

from __future__ import annotations

import warnings

from gwsandbox.backends.base import Backend
from gwsandbox.backends.cgroup.backend import CgroupBackend
from gwsandbox.backends.rlimit import RlimitBackend
from gwsandbox.model.errors import CgroupError, DegradedWarning
from gwsandbox.model.limits import Limits


def choose_backend(name: str, *, stacklevel: int) -> Backend:
    """The backend of that name; for "auto" the best that this host has, with a ``DegradedWarning`` for the other.

    Raises:
        ValueError: There is none of that name. CgroupError: It is "cgroup", which is not available.
    """
    backend, refused = find_backend(name)
    if refused is not None:
        warn_degraded(refused, stacklevel=stacklevel + 1)
    return backend


def find_backend(name: str) -> tuple[Backend, CgroupError | None]:
    """The backend of that name; for "auto" the best that this host has, and why it is not the cgroup backend.

    Raises:
        ValueError: There is none of that name. CgroupError: It is "cgroup", which is not available.
    """
    if name == "rlimit":
        return RlimitBackend(), None
    if name not in {"auto", "cgroup"}:
        raise ValueError(f"backend must be 'auto', 'cgroup' or 'rlimit', not {name!r}")
    try:
        found = CgroupBackend.find()
    except CgroupError as error:
        if name == "cgroup":
            raise
        return RlimitBackend(), error
    if found.remark:
        warnings.warn(found.remark, DegradedWarning, stacklevel=4)
    return found, None


def rlimit_degrades(limits: Limits) -> dict[str, str]:
    """The limits among ``limits`` that the rlimit backend holds less than fully, and why."""
    degraded = RlimitBackend().open(limits).enforcement.degraded
    return {name: degraded[name] for name in limits.requested() if name in degraded}


def warn_degraded(refused: CgroupError, *, stacklevel: int) -> None:
    """Warn that limits are held by the rlimit backend, as the other one is ``refused``."""
    warnings.warn(
        "no cgroup v2 here, so limits are held by rlimits and sampling: memory of a tree of processes can pass "
        f"its limit for a moment, and cpus are not held. {refused}",
        DegradedWarning,
        stacklevel=stacklevel + 1,
    )
