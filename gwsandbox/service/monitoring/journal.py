"""The service's log: structured entries to systemd's journal by its native protocol, or lines on stderr.

The protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. The service uses it where systemd connected stderr to
the journal. Elsewhere stderr gets a line for each entry: with the priority as ``<N>`` before it, or on a terminal
without.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

SOCKET = "/run/systemd/journal/socket"
ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6  # syslog's
_NAME = "gwsandbox-spool"
_LONGEST = 8192  # bytes of a value; an entry must fit into a datagram

Value = str | bytes | float | None


class Journal:
    """Writes entries to the journal, or to stderr.

    Args:
        path: Path of the journal's socket.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if _is_journal(2) else None
        if self._socket is not None:
            self._socket.settimeout(1)  # a journal that does not read stops the service for no longer

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def write(self, message: str, priority: int = INFO, **fields: Value) -> None:
        """Write an entry.

        Args:
            message: Its text. It becomes one line of printable characters, as it may hold a stranger's file name.
            priority: Its priority, as syslog numbers them.
            fields: Its further fields, with names in capital letters. The journal leaves out ``None``.
        """
        message = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
        if self._socket is not None:
            own: dict[str, Value] = {"MESSAGE": message, "PRIORITY": priority, "SYSLOG_IDENTIFIER": _NAME}
            with contextlib.suppress(OSError):
                self._socket.sendto(encode({**own, **fields}), self._path)
                return
        prefix = "gwsandbox serve: " if os.isatty(2) else f"<{priority}>"
        line = f"{prefix}{message}\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode(errors="backslashreplace"))


def encode(fields: dict[str, Value]) -> bytes:
    """Encode an entry as one datagram. A value of several lines goes with its length."""
    return b"".join(_field(name, value) for name, value in fields.items() if value is not None)


def _field(name: str, value: str | bytes | float) -> bytes:
    data = value if isinstance(value, bytes) else str(value).encode(errors="backslashreplace")
    data = data[:_LONGEST]
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _is_journal(fd: int) -> bool:
    """Whether a descriptor is the journal's stream that systemd opened; see systemd.exec(5)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))
