"""Tasks that are submitted for as long as somebody likes: the queue behind the executor and the asyncio pool.

Nothing here waits. Whoever drives the queue calls ``turn`` when ``fileno`` can be read and after each change, and gets
the results that have come. To be driven by one thread at a time.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gwsandbox.client.parameters import Parameters
from gwsandbox.client.processes import forget_private, keep_private
from gwsandbox.client.results import never_started
from gwsandbox.client.session import Session
from gwsandbox.model.errors import CgroupError, SandboxError, TransferError
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command, Task
from gwsandbox.model.text import describe

# Orders that a supervisor has beyond its slots: one whose guest is being born, and one to follow. What is sent can no
# longer be overtaken by what has a higher priority.
_AHEAD = 2

_numbers = itertools.count(1)


@dataclass(slots=True, eq=False)
class Submission:
    """One task in the queue.

    Args:
        task: What to run; no other submission has the same object.
        priority: Those of a higher one start first.
    """

    task: Task | Command
    priority: int = 0
    number: int = 0
    session: Session | None = None
    is_cancelled: bool = False


Finished = tuple[Submission, TaskResult]


class TaskQueue:
    """Tasks by priority, and the sessions that run them: one, and for a while those that it has replaced.

    Args:
        parameters: Of the sessions.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._waiting: list[tuple[int, int, Submission]] = []
        self._sent: dict[int, Submission] = {}  # by the identity of the task
        self._finished: list[Finished] = []
        self._session: Session | None = None
        self._replaced: list[Session] = []
        self._epoll = select.epoll()
        keep_private(self._epoll.fileno())

    def fileno(self) -> int:
        """The descriptor that can be read when ``turn`` has something to do."""
        return self._epoll.fileno()

    def __len__(self) -> int:
        """How many tasks have no result yet."""
        return len(self._waiting) + len(self._sent)

    # --- sessions -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a session, unless there is one.

        Raises:
            SandboxError: It cannot be started.
        """
        if self._session is None:
            self.adopt(self.started_session())

    def started_session(self) -> Session:
        """A further session; any thread may call this.

        Raises:
            SandboxError: It cannot be started.
        """
        session = self._parameters.session({})
        try:
            session.start()
        except CgroupError as error:
            session.close()
            self._parameters.degrade(error, stacklevel=4)
            return self.started_session()
        except BaseException:
            session.close()
            raise
        return session

    def adopt(self, session: Session) -> None:
        """Let ``session`` run what is not sent yet; the one before ends when it has no more tasks."""
        if self._session is not None:
            self._replaced.append(self._session)
        self._session = session
        self._epoll.register(session.fileno(), select.EPOLLIN)

    def _sessions(self) -> list[Session]:
        return [*self._replaced, *(() if self._session is None else (self._session,))]

    def _close_done(self) -> None:
        """Close the sessions that are lost, or replaced and done."""
        for session in self._sessions():
            if not session.unfinished and (session.lost or session is not self._session):
                self._close_session(session)

    def _close_session(self, session: Session) -> None:
        if session is self._session:
            self._session = None
        else:
            self._replaced.remove(session)
        self._epoll.unregister(session.fileno())
        session.close()
        self._collect(session.results)

    # --- tasks --------------------------------------------------------------------------------------

    def add(self, submission: Submission) -> None:
        """Put a task into the queue."""
        submission.number = next(_numbers)
        heapq.heappush(self._waiting, (-submission.priority, submission.number, submission))

    def cancel(self, submissions: Iterable[Submission], *, begun: bool = True) -> None:
        """End some tasks, each of which still gets its result.

        Args:
            submissions: The tasks; those that are done are left out.
            begun: Whether those are meant too whose time has begun.
        """
        by_session: dict[Session, set[int]] = {}
        for submission in submissions:
            if submission.session is not None:
                by_session.setdefault(submission.session, set()).add(submission.number)
            else:
                submission.is_cancelled = True
        for session, numbers in by_session.items():
            session.cancel_tasks(numbers, begun=begun)
        kept = [entry for entry in self._waiting if not entry[2].is_cancelled]
        if len(kept) < len(self._waiting):
            dropped = [entry[2] for entry in self._waiting if entry[2].is_cancelled]
            self._finished += [(submission, never_started(submission.task)) for submission in dropped]
            heapq.heapify(kept)
            self._waiting = kept

    def waiting(self) -> list[Submission]:
        """All that are not sent yet."""
        return [entry[2] for entry in self._waiting]

    def unfinished(self) -> list[Submission]:
        """All that have no result yet."""
        return [*self._sent.values(), *self.waiting()]

    def resume(self, submission: Submission) -> None:
        """Let the output of a program be handed on again."""
        if submission.session is not None:
            submission.session.resume_streams(submission.number)

    def send_signal(self, number: int) -> None:
        """Send a signal to the guests that run."""
        for session in self._sessions():
            session.send_signal(number)

    def turn(self, begins: Callable[[Submission], bool] = lambda _: True) -> list[Finished]:
        """Send what can be sent, and take the results that have come.

        Args:
            begins: Called with each task that is about to be sent; whether it is still wanted.
        """
        for session in self._sessions():
            self._take(session)
        self._close_done()
        while self._waiting and self._has_room(self._waiting[0][2].task):
            if not self._start_or_fail():
                break
            submission = heapq.heappop(self._waiting)[2]
            if begins(submission):
                self._send(submission)
            else:
                self._finished.append((submission, never_started(submission.task)))
        for session in self._sessions():
            self._take(session)
        finished, self._finished = self._finished, []
        return finished

    def _take(self, session: Session) -> None:
        results = session.results_now()
        while session.streams.calls:
            try:
                session.streams.make_calls()
            except (Exception, SystemExit):
                session.streams.drop_call()
                logging.getLogger("gwsandbox").exception("a callback for a program's streams raised")
        self._collect(results)

    def _collect(self, results: Iterable[TaskResult]) -> None:
        for result in results:
            submission = self._sent.pop(id(result.task))
            submission.session = None
            self._finished.append((submission, result))

    def _has_room(self, task: Task | Command) -> bool:
        ahead = 0 if self._replaced else _AHEAD
        if len(self._sent) >= self._parameters.max_workers + ahead:
            return False
        return self._parameters.has_memory_for(task, self._sessions())

    def _start_or_fail(self) -> bool:
        """Have a session; where none can be started, what waits has that as its result."""
        try:
            self.start()
        except SandboxError as error:
            waiting, self._waiting = self._waiting, []
            for _, _, submission in waiting:
                self._finished.append((submission, _not_started(submission.task, error)))
            return False
        return True

    def _send(self, submission: Submission) -> None:
        session = self._session
        assert session is not None
        self._sent[id(submission.task)] = submission
        submission.session = session
        try:
            session.submit(submission.number, submission.task)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - code of the task's, which pickle calls
            del self._sent[id(submission.task)]
            submission.session = None
            self._finished.append((submission, _not_packed(submission.task, error)))

    # --- ending -------------------------------------------------------------------------------------

    def close(self) -> list[Finished]:
        """Cancel what is unfinished, and come back with the results when nothing of it is left."""
        self.cancel(self.unfinished())
        for session in self._sessions():
            self._close_session(session)
        forget_private(self._epoll.fileno())
        self._epoll.close()
        finished, self._finished = self._finished, []
        return finished


def _not_started(task: Task | Command, error: SandboxError) -> TaskResult:
    return TaskResult(task, success=False, exception=error, outcome=Outcome.SANDBOX_ERROR, detail=str(error))


def _not_packed(task: Task | Command, error: BaseException) -> TaskResult:
    wrapped = TransferError(f"task cannot be sent to its process: {describe(error)}")
    wrapped.__cause__ = error
    return TaskResult(task, success=False, exception=wrapped, outcome=Outcome.FAILED, detail=str(wrapped))
