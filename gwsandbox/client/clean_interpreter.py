"""How a clean interpreter is started ("forkserver"): with the caller's flags, and safe from strangers' modules.

It imports gwsandbox, and what that needs, from the interpreter's own places, whatever the current folder or the
caller's ``sys.path`` holds. Then it gets the caller's ``sys.path`` for what the tasks need.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections import deque
from collections.abc import Mapping

from gwsandbox.backends.base import Backend
from gwsandbox.ipc import call
from gwsandbox.ipc.channel import PACKET, STORED, Packet
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.options import RunOptions

_PROGRAM = (
    "import sys; del sys.path[:not sys.flags.safe_path]; "  # the current folder, which may be a stranger's
    "sys.path.append(sys.argv[1]); from gwsandbox.supervisor.bootstrap import serve; serve(int(sys.argv[2]))"
)
_OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

_TO_START = ("LD_LIBRARY_PATH", "PYTHONHOME")  # secrets of nobody's

# What "" in sys.path stands for is decided once, as multiprocessing does: the folder that the caller began in.
_began_in = ""
with contextlib.suppress(OSError):
    _began_in = os.getcwd()


def arguments(end: int) -> list[str]:
    """Those of its process, the first its name.

    Args:
        end: Descriptor of the supervisor's end of the socket, which it inherits.
    """
    import subprocess  # noqa: PLC0415 - it imports threading, which every later fork pays for

    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, "-c", _PROGRAM, _OURS, str(end)]


def environment(hardening: Hardening) -> Mapping[str, str]:
    """That of its process: no more than guests may see, who have its memory, and what an interpreter needs to start."""
    if hardening.environment is None:
        return os.environ
    return {name: os.environ[name] for name in (*hardening.environment, *_TO_START) if name in os.environ}


def preparation(options: RunOptions, backend: Backend, memfds: deque[int]) -> Packet:
    """What it needs to know, that a fork would.

    Args:
        options: Of the run.
        backend: How limits are held.
        memfds: Gets the descriptor of what is too large for a packet, which is the caller's to close.
    """
    path = [_began_in if folder == "" else folder for folder in sys.path]
    message = (os.getpid(), [folder for folder in path if folder != ""], sys.argv, backend.name, options)
    data = pickle.dumps(message, protocol=5)
    if len(data) <= PACKET:
        return Packet(data)
    return Packet(STORED, (call.store(data, "gwsandbox-preparation", memfds),))
