"""Run work that may hang, leak, explode or attack: each task in a process and a cgroup v2 of its own.

::

    from gwsandbox import ProcessManager, Task

    with ProcessManager(worker_timeout_seconds=5, memory_limit_in_gib=1) as manager:
        manager.queue_tasks(Task(convert, (path,)) for path in paths)
        for result in manager.as_completed():
            print(result.outcome, result.detail)
"""

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
from gwsandbox.model.task import Command, CommandOutput, Task
from gwsandbox.progress import progress
from gwsandbox.run import run

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
    "Limits",
    "Outcome",
    "OutputExceeded",
    "ProcessManager",
    "RemoteError",
    "RemoteTraceback",
    "SandboxError",
    "Task",
    "TaskCancelled",
    "TaskResult",
    "TransferError",
    "Usage",
    "progress",
    "run",
]
