"""What the tasks do. Importable and plain, so that every tool can send it to its worker processes."""

import mmap
import os
import struct
import time

STARTED = struct.Struct("=qd")  # pid, monotonic clock
_STEP = 1 << 20


def noop() -> None:
    """Do nothing: what remains is what the tool costs."""


def make_bytes(size: int) -> bytes:
    """A result of ``size`` bytes."""
    return b"x" * size


def report_start(fifo: str) -> None:
    """Write this process's pid and the time to the FIFO, for the bench that watches from outside."""
    now = time.monotonic()
    fd = os.open(fifo, os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, STARTED.pack(os.getpid(), now))
    os.close(fd)


def report_and_sleep(fifo: str, seconds: float) -> None:
    """Report the start, and sleep."""
    report_start(fifo)
    time.sleep(seconds)


def grow(progress: str, ceiling: int, shared: bool) -> int:  # noqa: FBT001 - pools call by position
    """Touch memory as fast as it goes, up to ``ceiling`` bytes; write after each step how many there are."""
    content = b"x" * _STEP
    fd = os.open(progress, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    kept: list[bytearray | mmap.mmap] = []
    for reached in range(_STEP, ceiling + 1, _STEP):
        # Piece by piece: the kernel refuses one of the whole size at once.
        kept.append(_shared_copy(content) if shared else bytearray(content))
        os.pwrite(fd, struct.pack("=q", reached), 0)
    return len(kept) * _STEP


def _shared_copy(content: bytes) -> mmap.mmap:
    """Memory that does not count against RLIMIT_DATA."""
    area = mmap.mmap(-1, len(content), flags=mmap.MAP_SHARED)
    area.write(content)
    return area


def leave_daemon(mark: str) -> None:
    """Fork twice: ``sleep MARK`` in a session of its own outlives this process."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(reader)
            null = os.open(os.devnull, os.O_RDWR)
            for standard in range(3):
                os.dup2(null, standard)
            os.execvp("sleep", ["sleep", mark])  # its copy of ``writer`` closes here
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)  # ends when the daemon executes
    os.wait()
