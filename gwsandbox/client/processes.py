"""The processes of one run, as the caller holds them: the reaper, the supervisor, and the socket to it.

What a system call gives is stored by the same call of C that makes it (``uninterrupted.store``), so that Ctrl-C at any
bytecode loses nothing; each method may be called again where it was interrupted.
"""

from __future__ import annotations

import _socket
import contextlib
import functools
import os
import select
import signal
import socket
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from itertools import chain, starmap

from gwsandbox.backends.base import Backend
from gwsandbox.client import clean_interpreter
from gwsandbox.client.loggers import fork_beside_loggers
from gwsandbox.client.uninterrupted import close_all, store
from gwsandbox.ipc.channel import Packet, Sent, send
from gwsandbox.linux import unpatched
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.options import RunOptions
from gwsandbox.model.task import Command, Task
from gwsandbox.supervisor.bootstrap import Inheritance, run_reaper

_END_SECONDS = 30.0  # that a reaper has to clear up once its supervisor is dead; then it is killed
_ANSWER_SECONDS = 2.0  # that a supervisor has to say that it is there, once its reaper is dead
_SIGNALS = signal.valid_signals()


# Those of this process; a fork of it for one of them closes what belongs to any.
_known: weakref.WeakSet[Processes] = weakref.WeakSet()
_private: set[tuple[int, int]] = set()  # pid of the caller, and a descriptor that it waits by


def keep_private(fd: int) -> None:
    """Keep a descriptor of the caller's from guests, which could keep the caller from waking up."""
    _private.add((os.getpid(), fd))


def forget_private(fd: int) -> None:
    """To be called before a descriptor is closed that ``keep_private`` has kept."""
    _private.discard((os.getpid(), fd))


class Processes:
    """The reaper and the supervisor of one run, from ``start`` to ``release``."""

    def __init__(self, backend: Backend, options: RunOptions) -> None:
        """Nothing is started yet.

        Args:
            backend: How limits are held.
            options: Of the run.
        """
        self._backend = backend
        self._options = options
        self._ends: deque[_socket.socket] = deque()
        self._reapers: deque[int] = deque()
        self.pidfds: deque[int] = deque()  # of the reaper, then of the supervisor
        self.memfds: deque[int] = deque()  # on their way to the supervisor
        self.epoll: select.epoll | None = None
        self.reaper_status: int | None = None
        self._watches_room = False
        _known.add(self)

    # --- starting -----------------------------------------------------------------------------------

    def start(self, inherited_tasks: dict[int, Task | Command]) -> None:
        """Start the reaper, which starts the supervisor.

        Args:
            inherited_tasks: Tasks, by number, that come along with a fork.

        Raises:
            SandboxError: It cannot be started.
        """
        try:
            with _standard_descriptors_open():
                pairs = starmap(_socket.socketpair, ((socket.AF_UNIX, socket.SOCK_SEQPACKET),))
                self._ends.extend(chain.from_iterable(pairs))
                if self._options.start_method == "fork":
                    self._fork(inherited_tasks)
                else:
                    self._spawn()
            self.watch()
        except OSError as error:
            remedy = "see ulimit -u (processes) and ulimit -n (descriptors)"
            raise SandboxError("start supervisor", errno=error.errno or 0, remedy=remedy) from error

    def watch(self) -> None:
        """Wait for reports of the supervisor, and for the death of its reaper; safe to call again.

        Raises:
            OSError: There is no descriptor for it.
        """
        self._ends[1].close()
        if not self.pidfds:
            store(self.pidfds, os.pidfd_open, self._reapers[0])
        if self.epoll is None:
            self.epoll = unpatched.module("select").epoll()
        for watched in (self._ends[0], self.pidfds[0]):
            with contextlib.suppress(FileExistsError):
                self.epoll.register(watched, select.EPOLLIN)

    def _fork(self, inherited_tasks: dict[int, Task | Command]) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()  # or every guest would write again what is buffered here
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            # Blocked until the child has seen to itself: a Ctrl-C that arrives in it belongs to the caller.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            fork_beside_loggers(functools.partial(store, self._reapers, unpatched.module("os").fork))
            if self._reapers[0] == 0:
                callers = functools.partial(_descriptors, self._options.caller)
                run_reaper(self._ends[1], Inheritance(self._backend, self._options, inherited_tasks, callers))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _spawn(self) -> None:
        """Start a clean interpreter. Not by ``subprocess``, which may be interrupted when it knows the pid alone."""
        end = self._ends[1].fileno()
        arguments = clean_interpreter.arguments(end)
        environment = clean_interpreter.environment(self._options.hardening)
        keep_end = [(os.POSIX_SPAWN_DUP2, end, end)]
        spawn = functools.partial(unpatched.module("os").posix_spawn, file_actions=keep_end, setsigmask=())
        store(self._reapers, spawn, sys.executable, arguments, environment)

    # --- the socket ---------------------------------------------------------------------------------

    @property
    def socket(self) -> _socket.socket:
        """The caller's end."""
        return self._ends[0]

    def send(self, packet: Packet) -> Sent:
        """Send a packet; does not wait.

        Raises:
            BrokenPipeError: The supervisor is gone. OSError: The kernel refuses the packet.
        """
        return send(self._ends[0], packet)

    def await_room(self) -> None:
        """Wait until the socket can be written, or there is something to hear."""
        assert self.epoll is not None
        poll = unpatched.module("select").poll()
        poll.register(self._ends[0], select.POLLOUT)
        poll.register(self.epoll.fileno(), select.POLLIN)
        poll.poll()

    def watch_room(self, *, wanted: bool) -> None:
        """Whether the epoll can be read when the socket can be written, too."""
        if wanted is not self._watches_room and self.epoll is not None and not self.epoll.closed:
            self.epoll.modify(self._ends[0], select.EPOLLIN | (select.EPOLLOUT if wanted else 0))
            self._watches_room = wanted

    def send_no_more(self) -> None:
        """Say that nothing more will be sent: the supervisor ends what runs, and itself."""
        if self._ends:
            with contextlib.suppress(OSError):  # it is gone already, or the link is closed
                self._ends[0].shutdown(socket.SHUT_WR)

    def adopt_supervisor(self, pidfd: int) -> None:
        """Keep the supervisor's pidfd, and learn of its death by that; does no harm if it is done again."""
        if pidfd not in self.pidfds:
            self.pidfds.append(pidfd)
        self._watch_supervisor()

    def _watch_supervisor(self) -> None:
        assert self.epoll is not None
        with contextlib.suppress(OSError):  # watched already; or tried again, should the reaper die, who says it too
            self.epoll.register(self.pidfds[1], select.EPOLLIN)

    def is_supervisor_dead(self, ready: set[int]) -> bool:
        """Whether that follows from what is ready, of which nothing is left to be read.

        While the supervisor lives the run goes on without a reaper, whose duty ``end_reaper`` and its caller have then.
        A reaper may die before the supervisor has said that it is there: either that comes, or the socket's end. The
        end does not come where another thread has forked between the call that made the socket and its being stored.
        """
        if ready & {*self.pidfds} != {self.pidfds[0]} or (len(self.pidfds) == 1 and not self._is_answered()):
            return True
        assert self.epoll is not None
        with contextlib.suppress(FileNotFoundError):  # an interrupted call has done so
            self.epoll.unregister(self.pidfds[0])
        if len(self.pidfds) > 1:
            self._watch_supervisor()
        return False

    def _is_answered(self) -> bool:
        poll = unpatched.module("select").poll()
        poll.register(self._ends[0], select.POLLIN)
        return bool(poll.poll(_ANSWER_SECONDS * 1000))

    # --- ending -------------------------------------------------------------------------------------

    @property
    def has_reaper(self) -> bool:
        """Whether there is one that nobody has waited for."""
        return bool(self._reapers) and self.reaper_status is None

    def kill(self) -> None:
        """Kill the supervisor, and the reaper."""
        for pidfd in reversed(self.pidfds):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def end_reaper(self) -> None:
        """Wait until the reaper is dead, and a supervisor that outlives it.

        The reaper has cleared up by then, or is killed and that is left to us.
        """
        with contextlib.suppress(OSError):  # it is dead, or cannot be continued
            os.kill(self._reapers[0], signal.SIGCONT)  # a guest may have stopped it before it killed the supervisor
        for pidfd in self.pidfds:
            poll = unpatched.module("select").poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(_END_SECONDS * 1000):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        statuses: deque[tuple[int, int]] = deque()
        with contextlib.suppress(ChildProcessError):  # the caller's own code may have reaped it
            store(statuses, unpatched.module("os").waitpid, self._reapers[0], 0)
        self.reaper_status = statuses[0][1] if statuses else -1

    def release(self) -> None:
        """Close what is open, each once."""
        _known.discard(self)
        close_all(self.memfds)
        for end in self._ends:
            end.close()
        if self.epoll is not None:
            self.epoll.close()
        close_all(self.pidfds)

    def _descriptors(self) -> Iterator[int]:
        yield from (end.fileno() for end in self._ends)
        yield from (*self.pidfds, *self.memfds)
        if self.epoll is not None and not self.epoll.closed:
            yield self.epoll.fileno()


def _descriptors(caller: int) -> set[int]:
    """What belongs to the runs of a process, those of its other threads too, and must end with it.

    A fork of it knows them as well, but there the numbers may have come to mean something else.
    """
    known = [processes for processes in _known if processes._options.caller == caller]
    found = set(chain.from_iterable(processes._descriptors() for processes in known))
    return found | {fd for owner, fd in _private if owner == caller}


@contextlib.contextmanager
def _standard_descriptors_open() -> Iterator[None]:
    """Let 0, 1 and 2 be open for a while: where the caller has closed them, ours would be taken for them."""
    plugs: deque[int] = deque()
    try:
        while not plugs or plugs[-1] <= 2:
            store(plugs, os.open, os.devnull, os.O_RDWR)
            os.set_inheritable(plugs[-1], plugs[-1] <= 2)
        deque(map(os.close, starmap(plugs.pop, ((),))), maxlen=0)
        yield
    finally:
        close_all(plugs)
