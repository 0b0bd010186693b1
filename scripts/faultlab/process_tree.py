"""Which process plays which role, told by its place below the caller, and what a process does, from /proc."""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence


class Role(enum.StrEnum):
    """The processes of a run, each forked by the one before it; a guest is forked by the zygote."""

    CALLER = "caller"
    REAPER = "reaper"
    SUPERVISOR = "supervisor"
    ZYGOTE = "zygote"
    GUEST = "guest"
    SERVICE = "service"  # of the spool: a caller of its own


ROLES = tuple(role for role in Role if role is not Role.SERVICE)


def _read(path: str) -> bytes:
    """A file of /proc; empty where the process is gone."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read()
    return b""


def fields(pid: int) -> Sequence[bytes]:
    """The fields of /proc/PID/stat (proc(5)) from the third on; empty where the process is gone."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def children(pid: int) -> list[int]:
    """The children of a process, zombies included, the oldest first."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def descendants(pid: int) -> list[int]:
    """All that descends from a process, itself left out, parents before children."""
    found = [pid]
    for parent in found:  # grows while it is walked
        found += [child for child in children(parent) if child not in found]
    return found[1:]


def state(pid: int) -> str:
    """One letter, as in ps(1); empty where the process is gone."""
    found = fields(pid)
    return found[0].decode() if found else ""


def is_alive(pid: int) -> bool:
    """Whether it is there and no zombie."""
    return state(pid) not in {"", "Z", "X"}


def cpu_ticks(pids: Sequence[int]) -> int:
    """CPU time that these processes have used, in clock ticks."""
    return sum(sum(map(int, found[11:13])) for found in map(fields, pids) if len(found) > 13)


def find(caller: int) -> Mapping[Role, Sequence[int]]:
    """The living processes of each role below ``caller``; guests with what they have started left out."""
    found: dict[Role, list[int]] = {role: [] for role in ROLES}
    found[Role.CALLER] = _alive([caller])
    found[Role.REAPER] = _alive(children(caller))
    found[Role.SUPERVISOR] = _alive([pid for reaper in found[Role.REAPER] for pid in children(reaper)])
    for supervisor in found[Role.SUPERVISOR]:
        below = _alive(children(supervisor))
        zygote = _zygote(below)
        found[Role.ZYGOTE] += zygote
        found[Role.GUEST] += [pid for pid in below if pid not in zygote]
    return found


def _zygote(pids: Sequence[int]) -> list[int]:
    """The zygote among the children of a supervisor.

    It stays in the session of the reaper, and in no leaf. A guest leads a session of its own, but for its first moment.
    """
    followers = [
        pid for pid in pids if fields(pid)[3:4] != [str(pid).encode()] and b"/task-" not in _read(f"/proc/{pid}/cgroup")
    ]
    return sorted(followers, key=lambda pid: int((fields(pid)[19:20] or [b"0"])[0]))[:1]


def _alive(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


def describe(pid: int) -> str:
    """A process in words: its program, its state, and what it waits for in the kernel."""
    words = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    place = _read(f"/proc/{pid}/wchan").decode()
    number = _read(f"/proc/{pid}/syscall").split(b" ")[0].decode().strip()
    return (
        f"{pid} (parent {_parent(pid)}, state {state(pid) or 'gone'}, in {place or '?'}, call {number or '?'}): {words}"
    )


def _parent(pid: int) -> int:
    found = fields(pid)
    return int(found[1]) if found else 0


def report(caller: int) -> Iterator[str]:
    """A line for each process below a caller, with its role."""
    roles = {pid: role for role, pids in find(caller).items() for pid in pids}
    for pid in (caller, *descendants(caller)):
        yield f"{roles.get(pid, 'other')}: {describe(pid)}"


def stack(pid: int) -> str:
    """The Python stack of a process, where py-spy is installed."""
    spy = shutil.which("py-spy")
    if spy is None or not is_alive(pid):
        return ""
    words = [spy, "dump", "--nonblocking", "--pid", str(pid)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout
