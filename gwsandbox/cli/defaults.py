"""The limits that ``run`` and ``map`` have where none are asked for, so that no task can take the host down."""

from __future__ import annotations

from gwsandbox.cli.messages import note
from gwsandbox.cli.options import ChosenLimits
from gwsandbox.memory_usage import get_available_memory_bytes
from gwsandbox.model.limits import MIB, OPTIONS, Limits
from gwsandbox.model.text import format_size

_SHARE = 0.8  # of the memory that is really free, for all tasks that run at a time together
_LEAST_MEMORY = 64 * MIB
_PIDS = 1024
_OUTPUT = 64 * MIB


def with_defaults(
    chosen: ChosenLimits, *, workers: int, is_captured: bool, prefix: str, total_memory: int = 0
) -> Limits:
    """The limits that are asked for, and defaults for those that could use up the host; says which.

    Args:
        chosen: What the command line asks for.
        workers: Tasks at a time.
        is_captured: Whether their output is kept in memory.
        prefix: Of the message.
        total_memory: Bytes that all of them may have together; 0: that is not limited.
    """
    if not chosen.takes_defaults:
        return chosen.asked
    wanted = {"memory": chosen.asked.memory, "pids": chosen.asked.pids}
    if is_captured:
        wanted["output"] = chosen.asked.output
    added = {name: _default(name, workers, total_memory) for name, value in wanted.items() if value is None}
    if added:
        note(f"default limits: {_said(added, workers, total_memory)}; --no-limits lifts them", prefix=prefix)
    return Limits(**added).overridden_by(chosen.asked)


def _default(name: str, workers: int, total_memory: int) -> int:
    if name == "memory":
        share = (total_memory or int(get_available_memory_bytes() * _SHARE)) // workers
        return max(share // MIB * MIB, _LEAST_MEMORY)
    return _PIDS if name == "pids" else _OUTPUT


def _said(added: dict[str, int], workers: int, total_memory: int) -> str:
    words = []
    for name, value in added.items():
        size = str(value) if name == "pids" else format_size(value).replace(" ", "")
        words.append(f"{OPTIONS[name]} {size}")
        if name == "memory":
            each = "" if workers == 1 else f" for {workers} tasks at a time"
            words[-1] += f" ({'--total-memory' if total_memory else f'{_SHARE:.0%} of what is free'}{each})"
    return ", ".join(words)
