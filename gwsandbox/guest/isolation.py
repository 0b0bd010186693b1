"""What a run has of its own where its guests see only what they are given: a root folder, processes, a name, a network.

All of it is made once, in the zygote, and inherited. The steps stand in the order in which each still has what it
needs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from gwsandbox.guest import reach
from gwsandbox.guest.slots import Slots
from gwsandbox.linux import confine, namespaces, own_root
from gwsandbox.model.hardening import ENFORCED
from gwsandbox.model.options import RunOptions

HOST_NAME = "gwsandbox"
_FIRST_SLOT_USER = 0x7000_0000  # ids above those of users, containers and systemd, and below what is signed
_USERS_PER_RUN = 64  # for each pid that a supervisor may have


@dataclass(slots=True)
class Isolation:
    """What was made.

    Args:
        held: For each mechanism whether it holds.
        has_root: Whether this process has a root folder of its own.
        hidden: Paths of the machine that were there before.
        slots: Views by slot, where each has its own.
    """

    held: dict[str, str] = field(default_factory=dict)
    has_root: bool = False
    hidden: tuple[str, ...] = ()
    slots: Slots | None = None


def isolate(options: RunOptions, users: Collection[int], why_no_pid_namespace: str) -> Isolation:
    """In the zygote, with all privileges that it has.

    Args:
        options: Of the run.
        users: Ids of the users that guests may become.
        why_no_pid_namespace: Why this process is in no PID namespace of the run's own; "" where it is.
    """
    made, hardening = Isolation(), options.hardening
    made.held["processes"] = f"not: no PID namespace ({why_no_pid_namespace})" if why_no_pid_namespace else ENFORCED
    made.held["host_name"] = tried(_take_host_name)
    if hardening.network != "host":
        made.held["network"] = tried(lambda: namespaces.private_network(loopback=hardening.network == "loopback"))
    made.held["files"] = tried(lambda: _take_root(made, options, users))
    if hardening.temporary is not None and made.has_root:
        made.held["temporary"] = tried(lambda: _take_slots(made, options))
    return made


def tried(step: Callable[[], object]) -> str:
    """Whether a step could be taken, in the words of ``Enforcement.hardening``."""
    try:
        step()
    except OSError as error:
        return f"not: {error}"
    return ENFORCED


def slot_users(options: RunOptions) -> list[int]:
    """An id for each slot, which no other run has at the same time.

    Raises:
        OSError: There are not enough.
    """
    count = slot_count(options)
    if count > _USERS_PER_RUN:
        raise OSError(f"user ids: {_USERS_PER_RUN} for {count} slots; run fewer tasks at a time")
    first = _FIRST_SLOT_USER + (os.getppid() or options.caller) % (1 << 22) * _USERS_PER_RUN
    return list(range(first, first + count))


def slot_count(options: RunOptions) -> int:
    """Guests that may live at a time: one is ready for the slot that comes free next."""
    return options.max_workers + 1


def _take_host_name() -> None:
    confine.unshare(confine.CLONE_NEWUTS)
    socket.sethostname(HOST_NAME)


def _take_root(made: Isolation, options: RunOptions, users: Collection[int]) -> None:
    folder = os.getcwd()
    before = set(os.listdir("/"))
    own_root.enter(reach.view(options.hardening, options.modules, users))
    made.has_root = True
    made.hidden = tuple(f"/{name}" for name in sorted(before - set(os.listdir("/"))))
    os.chdir(folder if os.path.isdir(folder) else reach.TEMPORARY[0])


def _take_slots(made: Isolation, options: RunOptions) -> None:
    hardening = options.hardening
    sizes = {path: int(hardening.temporary or 0) for path in reach.TEMPORARY if not os.path.islink(path)}
    given = (*reach.interpreter(), *(hardening.readable or ()), *(hardening.writable or ()), *options.modules)
    kept = {os.path.realpath(path) for path in given}
    below: list[str] = []
    for path in sorted(path for path in kept if any(path.startswith(f"{folder}/") for folder in sizes)):
        if not below or not path.startswith(f"{below[-1]}/"):  # else it comes along with that
            below.append(path)
    slots = Slots(sizes, below, os.getcwd())
    slots.make(slot_count(options))
    made.slots = slots
