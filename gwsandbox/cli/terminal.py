"""What a program changes for everybody who shares the terminal or a stream with it, and may leave changed."""

from __future__ import annotations

import contextlib
import os
import signal


class TerminalModes:
    """The modes of the terminal as they are now, where the CLI is in its foreground; and which streams block."""

    def __init__(self) -> None:
        self._blocking = [fd for fd in (0, 1, 2) if _blocks(fd)]
        self._fd = next((fd for fd in (0, 1, 2) if _is_foreground(fd)), -1)
        if self._fd >= 0:
            import termios

            self._modes = termios.tcgetattr(self._fd)

    def restore_streams(self) -> None:
        """Let streams block again that did: else the shell and its next programs fail with EAGAIN."""
        for fd in self._blocking:
            os.set_blocking(fd, True)

    def restore(self) -> None:
        """Restore them all, the terminal's unless another job has come to the foreground since."""
        self.restore_streams()
        if self._fd < 0:
            return
        import termios

        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])  # which stops a writer in the background
        try:
            with contextlib.suppress(OSError, termios.error):  # the terminal is gone
                if not _is_foreground(self._fd):
                    if _lives(os.tcgetpgrp(self._fd)):
                        return
                    os.tcsetpgrp(self._fd, os.getpgrp())  # it was the program's own group
                termios.tcsetattr(self._fd, termios.TCSANOW, self._modes)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _blocks(fd: int) -> bool:
    try:
        return os.get_blocking(fd)
    except OSError:  # closed
        return False


def _is_foreground(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # closed, or not our terminal
        return False


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
