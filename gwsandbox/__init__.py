"""Run work that may hang, leak, explode or attack: each task in a process and a cgroup v2 of its own.

::

    from gwsandbox import ProcessManager, Task

    with ProcessManager(worker_timeout_seconds=5, memory_limit_in_gib=1) as manager:
        manager.queue_tasks(Task(convert, (path,)) for path in paths)
        for result in manager.as_completed():
            print(result.outcome, result.detail)
"""

from typing import TYPE_CHECKING, Any

from gwsandbox.manager import GlasswallProcessManager, ProcessManager
from gwsandbox.model.errors import (
    CgroupError,
    CpuTimeExceeded,
    DegradedWarning,
    GuestCrashed,
    GuestError,
    GuestFailed,
    GuestKilled,
    GuestSetupError,
    InitializerFailed,
    OutputExceeded,
    RemoteError,
    RemoteTraceback,
    SandboxError,
    TaskCancelled,
    TransferError,
)
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Enforcement, Outcome, TaskResult, Usage
from gwsandbox.model.task import Command, CommandOutput, OutputChunk, Task
from gwsandbox.progress import progress
from gwsandbox.run import run

if TYPE_CHECKING:
    from gwsandbox.executor import SandboxExecutor

__version__ = "0.2.0"  # the one place: pyproject.toml reads it from here, and a test holds CHANGELOG.md against it

__all__ = [
    "CgroupError",
    "Command",
    "CommandOutput",
    "CpuTimeExceeded",
    "DegradedWarning",
    "Enforcement",
    "GlasswallProcessManager",
    "GuestCrashed",
    "GuestError",
    "GuestFailed",
    "GuestKilled",
    "GuestSetupError",
    "Hardening",
    "InitializerFailed",
    "Limits",
    "Outcome",
    "OutputChunk",
    "OutputExceeded",
    "ProcessManager",
    "RemoteError",
    "RemoteTraceback",
    "SandboxError",
    "SandboxExecutor",
    "Task",
    "TaskCancelled",
    "TaskResult",
    "TransferError",
    "Usage",
    "progress",
    "run",
]


def __getattr__(name: str) -> Any:
    """What imports ``threading`` is imported when it is asked for: every fork of a process that has it costs more."""
    if name == "SandboxExecutor":
        from gwsandbox.executor import SandboxExecutor  # noqa: PLC0415 - as said

        return SandboxExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
