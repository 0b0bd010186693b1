"""The standard streams of the CLI: none is missing, and none can break it."""

from __future__ import annotations

import io
import os
import sys

from gwsandbox.cli.messages import Failure


def make_safe() -> None:
    """Prepare the streams; to be called once, before anything is opened.

    A standard descriptor that is closed becomes /dev/null here: else the next file that is opened takes its number,
    and whatever a program writes to stderr goes into that file. Programs find it closed, as it was.

    A stream that does not block becomes one that does: Python drops what does not fit into a pipe, and so do most
    programs. An event loop that started us may have left it so, or another program that shares the terminal.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
        else:
            os.set_blocking(fd, True)
    # Without a stream for messages, some of Typer's go to stdout.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for ever
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_lines(text: str) -> None:
    """Print ``text`` on stdout. Where its reader is gone, nobody misses it.

    Raises:
        Failure: It cannot be written: the disk is full, for example.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # Else the interpreter tries once more at its end, and complains.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        if not isinstance(error, BrokenPipeError):
            raise Failure(f"stdout cannot be written: {error.strerror}") from error
