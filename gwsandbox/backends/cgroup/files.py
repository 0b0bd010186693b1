"""Reading and writing cgroup files; an error names the step, the path, the value and the errno."""

from __future__ import annotations

import errno
import os

from gwsandbox.model.errors import CgroupError

_LARGEST = 65536  # cpu.stat, the longest file read here, has a kilobyte


def read(name: str, folder: int) -> str | None:
    """The text of a file in the cgroup whose descriptor is ``folder``; ``None`` where it does not exist.

    Raises:
        OSError: It exists and cannot be read.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, _LARGEST).decode()
    except OSError as error:
        # A controller that is compiled in but switched off (cgroup_disable=, psi=0) has files that say so.
        if error.errno == errno.EOPNOTSUPP:
            return None
        raise
    finally:
        os.close(fd)


def write(name: str, value: str, folder: int, step: str, path: str) -> bool:
    """Write a file in the cgroup whose descriptor is ``folder``; False where it does not exist.

    Raises:
        CgroupError: The kernel refused; names ``step``, the file under ``path``, and the value.
    """
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CgroupError(step, path=f"{path}/{name}", value=value, errno=error.errno or 0) from error
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise CgroupError(step, path=f"{path}/{name}", value=value, errno=error.errno or 0) from error
    finally:
        os.close(fd)
    return True


def parse_flat(text: str | None) -> dict[str, int]:
    """A "flat keyed" file such as memory.events, as numbers by key; empty where there is none."""
    words = iter((text or "").split())
    return {key: int(value) for key, value in zip(words, words, strict=True)}


def parse_number(text: str | None) -> int | None:
    """A file of one number; ``None`` where it does not exist or says "max"."""
    return None if text is None or not text.strip().isdigit() else int(text)


def parse_io(text: str | None) -> tuple[int, int] | None:
    """Bytes read and written over all devices, from io.stat; ``None`` where it does not exist."""
    if text is None:
        return None
    words = [word.partition("=") for word in text.split()]
    return (
        sum(int(value) for key, _, value in words if key == "rbytes"),
        sum(int(value) for key, _, value in words if key == "wbytes"),
    )


def parse_pressure(text: str | None) -> float | None:
    """Seconds that some process waited for memory, from memory.pressure."""
    for line in (text or "").splitlines():
        if line.startswith("some"):
            return int(line.rpartition("total=")[2]) / 1e6
    return None
