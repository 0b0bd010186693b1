"""The command line in processes of its own: run to its end, talked to while it runs, and at a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from support import SLOW

CLI = [sys.executable, "-m", "gwsandbox"]
HANG_AFTER = 60 * SLOW  # a guard only: no test waits for it to pass

# Makes the terminal that it is connected to its session's own, as opening it does, and becomes what follows.
_AT_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.argv[1], sys.argv[1:])
"""


def environment(**more: str) -> dict[str, str]:
    """Ours, with this package's folder to import from wherever the program runs."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


def command_line(*words: str) -> list[str]:
    """The command line, without the limits that ``run`` and ``map`` have by default and say."""
    if words[:1] in {("run",), ("map",)} and "--profile" not in words:
        words = (words[0], "--no-limits", *words[1:])
    return [*CLI, *words]


def cli(*words: str, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        command_line(*words),
        **{
            "cwd": cwd,
            "env": environment(),
            "capture_output": True,
            "text": True,
            "errors": "surrogateescape",
            "timeout": HANG_AFTER,
            "check": False,
            **options,
        },
    )


def rows(report: Path) -> list[dict[str, Any]]:
    """The whole rows of a report; none where it is not there yet."""
    try:
        text = report.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_until(what: Callable[[], object]) -> None:
    """Wait until ``what`` is true."""
    deadline = time.monotonic() + HANG_AFTER
    while not what():
        assert time.monotonic() < deadline, f"waited {HANG_AFTER:.0f} s"
        time.sleep(0.005)


@dataclass
class Running:
    """A command line that runs."""

    process: subprocess.Popen[str]

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended: {self.end()}"
        return line.rstrip("\n")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Its exit code and what else it printed; waits for both."""
        stdout, stderr = self.process.communicate(timeout=HANG_AFTER)
        return self.process.returncode, stdout, stderr


@contextlib.contextmanager
def running(*words: str, cwd: Path | None = None, **options: Any) -> Iterator[Running]:
    """A command line while it runs; killed at the end if it still does."""
    process = subprocess.Popen(
        command_line(*words),
        **{
            "cwd": cwd,
            "env": environment(),
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **options,
        },
    )
    with process:
        try:
            yield Running(process)
        finally:
            if process.poll() is None:
                process.kill()


class Terminal:
    """A command line that runs at a terminal of its own, as a person's does."""

    def __init__(self, *words: str, cwd: Path | None = None, **more: str) -> None:
        self._master, slave = pty.openpty()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _AT_TERMINAL, *command_line(*words)],
                cwd=cwd,
                env=environment(**{"TERM": "xterm", **more}),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            )
        finally:
            os.close(slave)
        self.shown = ""

    def until(self, text: str) -> None:
        """Wait until it shows ``text``."""
        while text not in self.shown:
            assert self._read(), f"it ended and showed only {self.shown!r}"

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def modes(self) -> list[Any]:
        """See ``termios.tcgetattr``."""
        return termios.tcgetattr(self._master)

    def end(self) -> int:
        """Its exit code; waits for it, and for all that it shows."""
        while self._read():
            pass
        return self.process.wait(HANG_AFTER)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], HANG_AFTER)
        assert ready, f"it shows nothing more, after {self.shown!r}"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the last one that had it open is gone
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
