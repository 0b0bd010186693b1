"""Every error and warning that gwsandbox raises or puts into a result.

Whose fault it is shows in the type::

    SandboxError            ours: gwsandbox could not do its work (a path, a value, an errno, a remedy)
      CgroupError           a cgroup file said no
      GuestSetupError       a step between fork and the task's first instruction failed
    GuestError              the task's: how the guest ended; never raised, found in ``TaskResult.exception``
      GuestFailed           exit code other than 0, or no result
      GuestCrashed          a fatal signal of its own
      GuestKilled           a signal from outside, or an out-of-memory kill that was not its own limit's
      CpuTimeExceeded       its CPU-time limit
      OutputExceeded        its output limit
      InitializerFailed     an executor's initializer raised in its guest
      TaskCancelled         the caller ended it
      TransferError         its arguments, result or exception could not travel between processes
        RemoteError         stands for its exception, of a class that this process cannot import
    DegradedWarning         a limit will be held by less than a cgroup

A limit of wall-clock time ends in the built-in ``TimeoutError``, one of memory in ``MemoryError``.
"""

from __future__ import annotations

import os


class SandboxError(Exception):
    """gwsandbox itself failed; the fields say where, so that nobody needs to parse the text.

    Args:
        step: What was being done ("open leaf", "enable controllers", …).
        path: The file or object that it was done to, or ``""``.
        value: What was being written or asked for, or ``""``.
        errno: The system's error number, or 0.
        remedy: The command or change that helps, or ``""``.
    """

    def __init__(self, step: str, *, path: str = "", value: str = "", errno: int = 0, remedy: str = "") -> None:
        super().__init__(step)
        self.step = step
        self.path = path
        self.value = value
        self.errno = errno
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.step
        if self.path:
            text += f": {self.path}"
        if self.value:
            text += f" ({self.value!r})"
        if self.errno:
            text += f": {os.strerror(self.errno)} [errno {self.errno}]"
        if self.remedy:
            text += f"; {self.remedy}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only fields do not survive the default reduction of exceptions.
        return _rebuild, (type(self), self.step, self.path, self.value, self.errno, self.remedy)


def _rebuild(  # noqa: PLR0917 - only pickle calls it
    kind: type[SandboxError], step: str, path: str, value: str, errno: int, remedy: str
) -> SandboxError:
    return kind(step, path=path, value=value, errno=errno, remedy=remedy)


class CgroupError(SandboxError):
    """A cgroup could not be found, made, written, read or removed."""


class GuestSetupError(SandboxError):
    """A step between fork and the task's first instruction failed."""


class GuestError(Exception):
    """How a guest ended, where it did not end by an exception or limit that has a built-in name."""


class GuestFailed(GuestError):
    """The guest exited with a code other than 0, or without leaving a result."""


class GuestCrashed(GuestError):
    """A fatal signal of the guest's own (SIGSEGV, SIGABRT, …) ended it."""


class GuestKilled(GuestError):
    """A signal from outside ended the guest, or the OOM killer on behalf of an ancestor or the host."""


class CpuTimeExceeded(GuestError):
    """The guest used up its CPU-time limit."""


class OutputExceeded(GuestError):
    """The guest wrote more to stdout and stderr than its output limit."""


class InitializerFailed(GuestError):
    """The initializer of an executor raised in the guest, and the function was not called."""


class TaskCancelled(GuestError):
    """The caller ended the task, or the manager that held it, before it was done."""


class TransferError(GuestError):
    """A task, result or exception could not travel between processes; the text names its type."""


class RemoteError(TransferError):
    """Stands for an exception of a task that this process cannot make, as it cannot import the class.

    Args:
        type_name: The class of the exception, with its module.
        text: What ``str`` gave for it in the guest.
        reason: Why it could not travel itself; "" where that was not tried.
    """

    def __init__(self, type_name: str, text: str, reason: str = "") -> None:
        super().__init__(type_name, text, reason)
        self.type_name = type_name
        self.text = text
        self.reason = reason

    def __str__(self) -> str:
        text = f"{self.type_name}: {self.text}"
        return f"{text} (the exception itself cannot be sent back: {self.reason})" if self.reason else text


class RemoteTraceback(Exception):
    """The guest's traceback, as text; the ``__cause__`` of the exception that a task raised."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return f'\n"""\n{self.tb}"""'


class DegradedWarning(UserWarning):
    """Limits will be held by less than a cgroup; the text names what is lost and what to do."""
