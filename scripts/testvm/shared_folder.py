"""The line between host and agent under User-mode Linux: messages in a folder, and a serial line that announces them.

The serial line of that kernel stops for good when more arrives than its reader takes at once. So what the host sends
stands in files of a folder that the machine can mount, and the line carries their names only. What the agent sends
goes over the line.

Both sides use this module: standard library only, and nothing newer than Python 3.11.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from testvm.wire import Channel

NAME_BYTES = 8


class HostEnd(Channel):
    """The host's end: writes files, and their names to the line.

    Args:
        reader: The pipe that the serial line writes to.
        writer: The pipe that it reads.
        folder: What the machine mounts.
    """

    def __init__(self, reader: int, writer: int, folder: Path) -> None:
        super().__init__(reader, writer)
        self._folder = folder
        self._gathered: bytearray | None = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Send what is sent in this block as one file."""
        self._gathered = gathered = bytearray()
        try:
            yield
        finally:
            self._gathered = None
        self.write(bytes(gathered))

    def write(self, data: bytes, deadline: float | None = None) -> None:
        """Send all of it."""
        if self._gathered is not None:
            self._gathered += data
            return
        name = os.urandom(NAME_BYTES // 2).hex()
        (self._folder / name).write_bytes(data)
        super().write(name.encode(), deadline)


class AgentEnd(Channel):
    """The machine's end: reads names from the line, and the files.

    Args:
        fd: The serial line, without translation of its bytes.
        mount_point: Where the folder is mounted while it is read, so that no test sees it.
    """

    def __init__(self, fd: int, mount_point: Path) -> None:
        super().__init__(fd)
        self._mount_point = mount_point
        self._names = bytearray()

    def _take(self, data: bytes) -> bytes:
        self._names += data
        names = []
        while len(self._names) >= NAME_BYTES:
            names.append(self._names[:NAME_BYTES].decode())
            del self._names[:NAME_BYTES]
        return self._fetch(names) if names else b""

    def _fetch(self, names: list[str]) -> bytes:
        self._mount_point.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "hostfs", "none", str(self._mount_point)], check=True)
        try:
            # A name without a file is how a host that leaves makes itself heard.
            paths = [path for name in names if (path := self._mount_point / name).is_file()]
            found = b"".join(path.read_bytes() for path in paths)
            for path in paths:
                path.unlink()
            return found
        finally:
            subprocess.run(["umount", str(self._mount_point)], check=True)
