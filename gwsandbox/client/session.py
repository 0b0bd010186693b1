"""The caller's side of one run: starts a supervisor, sends it orders, turns its reports into results.

Ctrl-C, or a signal handler that raises, can come between any two bytecodes here. So nothing is kept in a local variable
only: whatever a system call gives is stored by the same call into C code that makes it (``_store``), a step that may be
taken twice does no harm the second time, and a thing leaves the place where it waits only when it has arrived in the
next one. ``close`` can be called in every state, and again where it was interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import compress, starmap
from typing import Any

from gwsandbox.backends.base import Backend
from gwsandbox.client import clean_interpreter
from gwsandbox.client.log import log_result
from gwsandbox.client.loggers import other_threads
from gwsandbox.client.outbox import Outbox
from gwsandbox.client.processes import Processes
from gwsandbox.client.results import make_result
from gwsandbox.client.running import RunningTask
from gwsandbox.client.streams import RunningStreams
from gwsandbox.client.trace import trace_result
from gwsandbox.client.uninterrupted import close_all, store
from gwsandbox.guest.reach import loaded_modules
from gwsandbox.ipc import call, channel
from gwsandbox.ipc.birth import LARGEST_WORK
from gwsandbox.ipc.channel import LOST, Begun, Confined, Ended, Order, Packet, Report, Sent, Signal, Started
from gwsandbox.linux import unpatched
from gwsandbox.linux.errnos import Patience, errno_of, is_not_now
from gwsandbox.model.errors import SandboxError, TransferError
from gwsandbox.model.limits import Limits
from gwsandbox.model.options import RunOptions
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command, CommandOutput, Task
from gwsandbox.model.verdict import NEVER_STARTED
from gwsandbox.supervisor.bootstrap import PRELOAD_REMEDY

_CLOSE_SECONDS = 30.0  # that a supervisor has to end everything; then it is killed
_LATER_SECONDS = 0.02
_OTHER_VERSION = "see that gwsandbox was not replaced by another version while this process runs"
_SIGNALS = signal.valid_signals()

# What recvmsg(2) gives. A None in the list of ancillary data stands for a descriptor of it that is closed.
_RawPacket = tuple[bytes, list[Any], int, Any]


class Session:
    """One supervisor, from its start to its end.

    To be used by one thread. ``start`` and ``close`` must be called; ``close`` cancels what still runs, and comes back
    when nothing of the run is left.
    """

    def __init__(
        self,
        backend: Backend,
        options: RunOptions,
        inherited_tasks: dict[int, Task | Command],
        results: deque[TaskResult] | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            backend: How limits are held.
            options: Of the run.
            inherited_tasks: Tasks, by number, that ``submit`` orders without their being pickled.
            results: Where results go, in order of completion.
        """
        self._backend = backend
        threads = other_threads() if options.start_method == "fork" else 0
        modules = loaded_modules() if options.hardening.readable is not None else ()
        self._options = options._replace(
            caller=os.getpid(), collect_garbage=gc.isenabled(), other_threads=threads, modules=modules
        )
        self._inherited_tasks = inherited_tasks if options.start_method == "fork" else {}
        self.results: deque[TaskResult] = deque() if results is None else results
        self._unfinished: dict[int, tuple[int, Task | Command]] = {}  # by the number of the order
        self.running: dict[int, RunningTask] = {}  # likewise; where ``says_begins`` asks for it
        self._next_order = 1
        self.last_number = 0
        self._processes = Processes(backend, self._options)
        self.streams = RunningStreams(self._processes)
        self._outbox = Outbox(self._processes, self.streams)
        self._packets: deque[_RawPacket] = deque()
        self._made: TaskResult | None = None
        self._patience, self._send_patience = Patience(), Patience()
        self._failure: SandboxError | None = None
        self._group: str | None = None
        self._held: Mapping[str, str] | None = None
        self.started = self.lost = self.cancelled = self.stopped = False

    # --- starting -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a supervisor.

        Raises:
            SandboxError: It cannot be started. CgroupError: The backend cannot be got ready.
        """
        self._processes.start(self._inherited_tasks)
        if self._options.start_method != "fork":
            with contextlib.suppress(BrokenPipeError):  # it is dead already, which is said below or by the first task
                self._send(clean_interpreter.preparation(self._options, self._backend, self._processes.memfds))
            close_all(self._processes.memfds)
        if self._options.preload or self._backend.may_refuse or self._options.hardening.require:
            self._await_start()
        self.started = True

    def _await_start(self) -> None:
        """Wait until the backend is ready and modules are preloaded: here a mistake is said once, not by each task."""
        while self._group is None or (self._options.hardening.require and self._held is None):
            self._receive(None)
            if self.lost or (self._failure is not None and self._group is not None):
                raise self._failure or SandboxError(
                    "preload modules: the interpreter ended meanwhile"
                    if self._options.preload
                    else "start supervisor: the reaper process ended meanwhile",
                    remedy=PRELOAD_REMEDY if self._options.preload else "see stderr, or the journal, for who killed it",
                )

    # --- orders -------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """How many tasks were submitted and have no result yet."""
        return len(self._unfinished)

    def promised_memory(self) -> int:
        """Bytes that the memory limits of the unfinished tasks add up to."""
        return sum(memory_limit(self._options.limits, task) for _, task in self._unfinished.values())

    def is_inherited(self, number: int) -> bool:
        """Whether this task came along with the fork."""
        return number in self._inherited_tasks

    def submit(self, number: int, task: Task | Command) -> None:
        """Order a task, to be sent by ``flush``. However it ends, ``results`` gets its result.

        ``last_number`` is ``number`` from then on: an interrupted caller knows by it whether this was done.
        """
        order = self._next_order
        limits = self._options.limits.overridden_by(task.limits)
        streams = 0
        try:
            if isinstance(task, Command) and task.has_streams:
                streams = self.streams.add(order, task)
            work = None if number in self._inherited_tasks else self._pack(task)
        except TransferError as error:
            self._fail(order, Report(order, Outcome.FAILED, str(error), error=error))
        except OSError as error:
            self._fail(order, _not_sent(order, error))
        else:
            large = work if isinstance(work, bytes) and len(work) > LARGEST_WORK else None
            inherited = number if number in self._inherited_tasks else 0
            made = Order(order, limits, None if large else work, inherited, streams=streams)
            self._outbox.add(made, large)
        self._unfinished[order] = number, task
        self._next_order, self.last_number = order + 1, number

    def submitted(self) -> set[int]:
        """The numbers of the tasks that were submitted and have no result yet, and of the last one in any case."""
        return {self.last_number, *(number for number, _ in self._unfinished.values())}

    def _pack(self, task: Task | Command) -> bytes | Command:
        if isinstance(task, Command):
            return task.without_streams() if task.has_streams else task
        return call.pack_task(task, by_value=self._options.start_method != "fork")

    def cancel_tasks(self, numbers: Collection[int], *, begun: bool = True) -> None:
        """End some tasks, each of which still gets its result; to be sent by ``flush``.

        Args:
            numbers: Of the tasks, as they were submitted.
            begun: Whether those are meant too whose time has begun.
        """
        wanted = [order for order, (number, _) in self._unfinished.items() if number in numbers]
        for order in self._outbox.cancel(wanted, begun=begun):
            self._fail(order, Report(order, Outcome.CANCELLED, NEVER_STARTED))

    def resume_streams(self, number: int) -> None:
        """Hand on the output of a program again, after its callback has paused it."""
        for order, (submitted, _) in self._unfinished.items():
            if submitted == number:
                self.streams.resume(order)

    def flush(self, *, wait: bool = True) -> None:
        """Send what was submitted and cancelled.

        Args:
            wait: Whether to wait while the supervisor takes nothing. Otherwise ``fileno`` can be read when it does.
        """
        while self._outbox and not self.lost:
            try:
                sent = self._outbox.send_next()
            except BrokenPipeError:
                break  # the next look for results finds it lost
            except (OSError, MemoryError) as error:
                if not self._outbox.orders or (is_not_now(error) and self.unfinished > self._outbox.orders):
                    break  # what runs gives back something
                number = self._outbox.drop_first()
                self._fail(number, _not_sent(number, error))
                continue
            if sent is Sent.FULL and not wait:
                break
            if sent is Sent.DONE:
                self._send_patience.renew()
            else:
                self._await_room(sent)
        self._processes.watch_room(wanted=bool(self._outbox) and not self.lost)

    def send_signal(self, number: int) -> None:
        """Send a signal to the guests that run: see ``ipc.channel.Signal``."""
        self.flush()
        with contextlib.suppress(BrokenPipeError):  # the next look for results finds it lost
            self._send(channel.pack(Signal(number), self._processes.memfds))

    def _send(self, packet: Packet) -> None:
        """Send a packet, waiting as long as the supervisor lives and takes nothing.

        Raises:
            BrokenPipeError: It is gone. OSError: The kernel refuses the packet.
        """
        while (sent := self._processes.send(packet)) is not Sent.DONE:
            self._await_room(sent)
            if self.lost:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self._send_patience.renew()

    def _await_room(self, sent: Sent) -> None:
        """Wait until the supervisor may take something, or for that which makes room."""
        if sent is Sent.LATER:
            self._send_patience.bear(OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)))
            time.sleep(_LATER_SECONDS)
        else:
            self._processes.await_room()
        self._receive(0)

    def _fail(self, order: int, report: Report) -> None:
        """A task that comes to nothing here, as if the supervisor had said so."""
        self._packets.append((channel.pack(report, deque()).data, [], 0, order))

    # --- results ------------------------------------------------------------------------------------

    def await_results(self, wait: Callable[[int], None] | None = None) -> None:
        """Wait until there are ``results``, or calls for ``streams``. Only while there are ``unfinished`` tasks.

        Args:
            wait: Called with a descriptor before each wait; it comes back when the descriptor can be read.
        """
        self.flush()
        while not self.results and not self.streams.calls and self._unfinished:
            if wait is not None and not self._packets and not self.lost:
                wait(self.fileno())
            self._receive(None)

    def fileno(self) -> int:
        """The descriptor that can be read when ``results_now`` would give something, or would find the session lost."""
        assert self._processes.epoll is not None
        return self._processes.epoll.fileno()

    def results_now(self) -> list[TaskResult]:
        """What has come; does not wait. May be empty."""
        self._receive(0)
        self.flush(wait=False)
        found = list(self.results)
        self.results.clear()
        return found

    def _receive(self, seconds: float | None) -> None:
        """Wait for a packet, or for the death of the supervisor, and take what has come."""
        if self._packets:  # of an interrupted call, or of tasks that came to nothing here
            self._settle()
            return
        epoll = self._processes.epoll
        if self.lost or epoll is None:
            self._report_lost()
            return
        unpatched.wait_beside_greenlets(epoll.fileno(), seconds)
        ready = self.streams.take(dict(epoll.poll(seconds)))
        if self._processes.socket.fileno() in ready:
            self._take_packet()
        elif ready and self._processes.is_supervisor_dead(ready):
            self._packets.append((b"", [], 0, None))
        self._settle()

    def _take_packet(self) -> None:
        try:
            receive = self._processes.socket.recvmsg
            store(self._packets, receive, channel.PACKET, channel.ANCILLARY, channel.RECEIVE_FLAGS)
            self._patience.renew()
        except (BlockingIOError, ConnectionResetError):
            return  # reset is said once, where orders were left unread: what was sent before that is still to come
        except OSError as error:
            self._bear(error)

    def _bear(self, error: OSError) -> None:
        """The kernel cannot give a packet now; or the supervisor is gone, or is as good as gone."""
        try:
            self._patience.bear(error)
        except OSError:
            if is_not_now(error):
                self._failure = SandboxError("receive results", errno=error.errno or 0, remedy="free memory")
            self._packets.append((b"", [], 0, None))
        else:
            time.sleep(_LATER_SECONDS)

    def _settle(self) -> None:
        """Turn packets into results. Each packet stays in its place until all is done that it asks for."""
        while self._packets:
            self._settle_one(self._packets[0])
            self._made = None
            self._packets.popleft()

    def _settle_one(self, packet: _RawPacket) -> None:
        data, ancillary, flags, _ = packet
        if not data:
            self.lost = True
            return
        number = channel.number_of(data)
        try:
            if number in self._unfinished:
                self._finish(number, channel.unpack_patiently(data, ancillary, flags))
            elif number == 0:
                self._note(channel.unpack_patiently(data, ancillary, flags))
                return
        except channel.NoPacketError as error:
            self._failure, self.lost = SandboxError("receive results", value=str(error), remedy=_OTHER_VERSION), True
        for fd in channel.descriptors_of(ancillary)[ancillary.count(None) :]:
            ancillary.extend(starmap(os.close, ((fd,),)))

    def _note(self, received: channel.Received) -> None:
        """What concerns the run as a whole."""
        message, pidfd = received
        if isinstance(message, Started):
            if pidfd is not None and pidfd >= 0:
                self._processes.adopt_supervisor(pidfd)
            self._backend.adopt_group(message.group)
            self._group = message.group
        elif isinstance(message, Confined):
            self._held = message.held
        elif isinstance(message, Begun):
            if message.order in self._unfinished:
                task = self._unfinished[message.order][1]
                self.running[message.order] = RunningTask(task, message.pid, message.started)
        elif isinstance(message, Ended):
            self._failure = message.error
            if message.stopped:
                self.stopped = self.cancelled = True
            if message.note:
                self._failure.add_note(message.note)

    def _finish(self, number: int, received: channel.Received) -> None:
        if self._made is None:
            report = received.message or _lost_report(number, -(received.descriptor or LOST))
            task = self._unfinished[number][1]
            made = make_result(task, report, received.descriptor, self._options, self._held)
            if isinstance(task, Command) and task.on_output is not None:
                self.streams.keep_rest(number, made.result)
                made = replace(made, result=CommandOutput(b"", b""))
            self._made = made
            log_result(self._made, self._options.limits.overridden_by(task.limits))
            trace_result(self._made)
        self.running.pop(number, None)
        self.streams.finish(number)
        # One call of C takes the task away and gives its result: neither is there twice, nor lost.
        self.results.extend(compress((self._made,), starmap(self._unfinished.pop, ((number,),))))

    def _report_lost(self) -> None:
        for number in list(self._unfinished):
            report = Report(number, Outcome.CANCELLED, NEVER_STARTED)
            if not self.cancelled:
                error = self._failure or SandboxError(
                    "the supervisor process ended before its time",
                    remedy="see stderr, or the journal, for who killed it",
                )
                report = Report(number, Outcome.SANDBOX_ERROR, str(error), error=error)
            self._fail(number, report)
        self._outbox.clear()
        self._settle()

    # --- ending -------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End everything that runs and all that waits; every task still gets its result."""
        self.cancelled = True
        self._outbox.clear()
        self._processes.send_no_more()

    def kill(self) -> None:
        """Kill a supervisor that does not answer; every unfinished task gets the result that it is lost."""
        self._processes.kill()

    def close(self) -> None:
        """Cancel what is unfinished, and come back when no process or cgroup of the run is left."""
        self.cancelled = True
        self._processes.send_no_more()
        if self._processes.has_reaper and not self.lost:
            with contextlib.suppress(OSError):  # no descriptor is left, or the reaper is: then it is waited for alone
                self._processes.watch()
                self._await_end()
        if self._processes.has_reaper:
            self._processes.end_reaper()
        if self._processes.reaper_status != 0:
            self._backend.destroy()  # what a reaper that was killed could not do
        self._report_lost()
        self.streams.close()
        self._processes.release()

    def _await_end(self) -> None:
        deadline = time.monotonic() + _CLOSE_SECONDS
        while not self.lost:
            self._receive(max(deadline - time.monotonic(), 0))
            if time.monotonic() >= deadline and not self.lost:
                self.kill()
                deadline += _CLOSE_SECONDS


def memory_limit(limits: Limits, task: Task | Command) -> int:
    """Bytes of the memory limit of a task among ``limits`` of its run; 0 where it has none."""
    return int(limits.overridden_by(task.limits).memory or 0)


def _not_sent(number: int, error: BaseException) -> Report:
    reason = SandboxError(
        "send task to its supervisor",
        value=str(error),
        errno=errno_of(error),
        remedy="raise ulimit -n (descriptors) and ulimit -f (file size), or give it less data",
    )
    return Report(number, Outcome.SANDBOX_ERROR, str(reason), error=reason)


def _lost_report(number: int, why: int) -> Report:
    error = SandboxError("receive result", errno=why, remedy="raise ulimit -n")
    return Report(number, Outcome.SANDBOX_ERROR, str(error), error=error)
