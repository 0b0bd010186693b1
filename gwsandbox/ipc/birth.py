"""What the supervisor and its zygote say to each other: "fork a guest with these descriptors", and the pid.

Each message is one packet of a Unix socket of type SOCK_SEQPACKET, so that its descriptors cannot be taken for those
of another. Both ends are processes of ours.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

REQUEST = struct.Struct("=QQBBH")
"""Number of the task, RLIMIT_DATA of a program in bytes (0: none), whether it is a program, which of ``ROLES`` come
along, and the guest's slot. What follows is the packed task, where it was queued late and is small."""

ANSWER = struct.Struct("=i")
"""Pid of the guest, or minus an errno; minus ``NOT_READY`` and an errno of a zygote that could not get ready. From a
PID namespace the pid comes as ``CREDENTIALS`` too."""

CREDENTIALS = struct.Struct("=iII")
"""struct ucred (unix(7)): pid, uid and gid, which the kernel translates for who receives them."""

NOT_READY = 1 << 16
"""More than any errno."""

ROLES = ("result", "start_event", "cgroup", "work", "stdin", "stdout", "stderr")
"""The descriptors of a guest, in the order in which they travel."""

CGROUP, WORK, STDIN, STDOUT, STDERR = (1 << place for place in range(2, len(ROLES)))
"""The bits of those that a guest need not have."""

RIGHTS = [struct.Struct(f"={count}i") for count in range(len(ROLES) + 1)]
"""Descriptors as they come along, by their number."""

LARGEST_WORK = 1 << 16
"""Bytes of a packed task up to which it travels in the message."""


def pack_held(held: Mapping[str, str]) -> bytes:
    """The zygote's first packet, where there is something to confine: whether each mechanism holds."""
    return "\0".join(text for pair in held.items() for text in pair).encode("utf-8", "replace")


def unpack_held(packet: bytes) -> dict[str, str]:
    """What ``pack_held`` packed, which is longer than any ``ANSWER``."""
    texts = packet.decode("utf-8", "replace").split("\0")
    return dict(zip(texts[::2], texts[1::2], strict=False))


TRUNCATED = int(socket.MSG_CTRUNC)  # a plain number: Python computes with an enum's members in Python
