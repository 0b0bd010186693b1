"""The signals that reach the CLI: read one by one, or turned into an exception in one place."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple, Self

from gwsandbox.linux import syscalls

_SI_KERNEL = 0x80  # include/uapi/asm-generic/siginfo.h: the terminal, and not kill(2)
_SIGINFO = struct.Struct("=IiI116x")  # signalfd(2): number, errno, code, padding


class Stopped(BaseException):
    """A signal ends the CLI. Not an ``Exception``, so that no handler of failures catches it.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 plus the number, as of a shell."""
        return 128 + self.number


class StopSignals:
    """Inside the block, each of ``numbers`` raises ``Stopped``, until ``until_clean_up`` ends.

    A signal that was ignored at the start stays ignored: nohup and background jobs of scripts rely on it.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._restore = contextlib.ExitStack()
        self._cleaning_up = False

    def __enter__(self) -> Self:
        for number in _not_ignored(self._numbers):
            self._restore.callback(signal.signal, number, signal.signal(number, self._stop))
        return self

    def __exit__(self, *_: object) -> None:
        self._restore.close()

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if not self._cleaning_up:
            raise Stopped(number)

    @contextlib.contextmanager
    def until_clean_up(self) -> Iterator[None]:
        """The innermost block: after it signals interrupt nothing.

        So a second Ctrl-C cannot interrupt the cleaning up after the first one.
        """
        try:
            yield
        finally:
            self._cleaning_up = True


class Arrived(NamedTuple):
    """A signal that arrived.

    Args:
        number: Of the signal.
        from_kernel: The kernel sent it: a key was typed at the terminal, or the terminal closed. The foreground
            process group has it too, then.
    """

    number: int
    from_kernel: bool


class SignalQueue:
    """Inside the block, ``numbers`` wait in a queue instead of being delivered.

    A signal that was ignored at the start stays ignored. Guests start with no signal blocked.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._fd = -1
        self._mask: set[int] = set()

    def __enter__(self) -> Self:
        """Block the signals.

        Raises:
            OSError: No descriptor is left.
        """
        numbers = _not_ignored(self._numbers)
        self._fd = syscalls.signalfd(numbers)
        self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, numbers))
        return self

    def __exit__(self, *_: object) -> None:
        self.take()  # a signal that comes too late must not end us now
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        os.close(self._fd)

    def fileno(self) -> int:
        """A descriptor that can be read when a signal has arrived."""
        return self._fd

    def take(self) -> list[Arrived]:
        """The signals that have arrived; does not wait."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, _SIGINFO.size):
                number, _, code = _SIGINFO.unpack(data)
                found.append(Arrived(number, code == _SI_KERNEL))
        return found


def _not_ignored(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    return [number for number in numbers if signal.getsignal(number) not in {signal.SIG_IGN, None}]


def suspend(number: signal.Signals = signal.SIGTSTP) -> None:
    """Stop this process as ``number``, which a ``SignalQueue`` holds back, does; come back when it is continued."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
