"""What all tasks of a run have in common: one record, from the manager to the zygote."""

from __future__ import annotations

from typing import NamedTuple

from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits


class RunOptions(NamedTuple):
    """What all tasks of one run have in common. The caller makes it, and every process of the run reads it.

    Args:
        max_workers: Guests at a time.
        limits: Limits of each task; a task's own override them field by field.
        start_method: "fork" or "forkserver"; see ``ProcessManager``.
        timeout_seconds: Wall-clock seconds as the user wrote them, for the results to show.
        memory_limit_in_gib: GiB as the user wrote them, for the results to show.
        pass_through: Programs keep the caller's terminal, session and standard descriptors.
        trusted: Python calls hold the caller's descriptors, and their values are unpickled. Where it is False, guests
            hold no descriptor but the standard three, and only bytes arrive of their values and only the outcome of
            their exceptions.
        says_begins: The caller gets a message when the time of each guest begins.
        grace_seconds: Seconds between SIGTERM and SIGKILL at the end of a task's wall-clock time; 0 is SIGKILL alone.
        hardening: What a guest may see and do.
        modules: Files and folders of modules that the caller has loaded, where guests may read only some files.
        preload: Modules that a clean interpreter imports once.
        total_memory: Bytes that all guests together may have; 0 is no such limit.
        caller: Pid of the caller.
        collect_garbage: Whether the caller has the garbage collector on.
        other_threads: Threads that the caller had beside its own when it was forked.
    """

    max_workers: int
    limits: Limits
    start_method: str
    timeout_seconds: float | None = None
    memory_limit_in_gib: float | None = None
    pass_through: bool = False
    trusted: bool = True
    says_begins: bool = False
    grace_seconds: float = 0.0
    hardening: Hardening = Hardening.standard()
    modules: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    total_memory: int = 0
    caller: int = 0
    collect_garbage: bool = True
    other_threads: int = 0
