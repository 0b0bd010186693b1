"""What all tasks of a run have in common."""

from __future__ import annotations

from typing import NamedTuple

from gwsandbox.model.limits import Limits


class Settings(NamedTuple):
    """What all tasks of a run have in common; see ``ProcessManager``.

    ``timeout_seconds`` and ``memory_limit_in_gib`` are as the user wrote them, for the results to show.

    Guests that are not ``trusted`` hold none of the caller's descriptors but the standard three, and nothing
    that they send is unpickled: of their values only bytes arrive, and of their exceptions only the outcome.
    """

    max_workers: int
    limits: Limits
    start_method: str
    timeout_seconds: float | None = None
    memory_limit_in_gib: float | None = None
    pass_through: bool = False
    trusted: bool = True
    preload: tuple[str, ...] = ()
