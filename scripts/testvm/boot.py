"""What boots, and how: the same for QEMU and User-mode Linux."""

import enum
from dataclasses import dataclass

from testvm.image import Image

SHARED = "shared"
"""The folder in a machine's folder that User-mode Linux can mount."""

AGENT = "agent.pyz"
"""The agent's program in it, which the machine fetches at boot."""


class Kind(enum.StrEnum):
    """What runs the machine's kernel."""

    QEMU = "qemu"
    """The suite's own kernel, on processors that QEMU emulates."""

    UML = "uml"
    """User-mode Linux: quick, with the kernel of its package, one processor, and neither Landlock nor PSI."""

    @property
    def memory(self) -> str:
        """The machine's memory, where nothing is said."""
        return "6G" if self is Kind.QEMU else "4G"


@dataclass(frozen=True)
class Boot:
    """How to start a machine.

    Args:
        image: What it boots from.
        kind: What runs it.
        memory: Its size in QEMU's spelling, such as "6G".
        cpus: How many processors it has; User-mode Linux has one.
        append: More words for the kernel.
        login: A user who gets a shell on this terminal, by QEMU only; `None` writes the console to a file.
    """

    image: Image
    kind: Kind = Kind.QEMU
    memory: str = "6G"
    cpus: int = 2
    append: str = ""
    login: str | None = None
