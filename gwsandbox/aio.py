"""``SandboxPool``: tasks in sandboxes for asyncio. The supervisor's socket is a reader of the event loop: no thread."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack, overload

from gwsandbox.client.parameters import Parameters, PoolOptions, check_names, check_task
from gwsandbox.client.session import Session
from gwsandbox.client.streams import PAUSE
from gwsandbox.client.task_queue import Submission, TaskQueue
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import TaskResult
from gwsandbox.model.task import Command, CommandOutput, OutputChunk, Task, check_limits

_R = TypeVar("_R")
_NOTHING = object()
_AHEAD_PER_WORKER = 2  # tasks that are drawn from an iterable beyond the slots

__all__ = ["SandboxPool"]


class _Options(TypedDict, total=False):
    limits: Limits | None
    priority: int


class SandboxPool:
    """Runs tasks, each in a process and where the host allows it a cgroup of its own, for the coroutines of one loop.

    ::

        async with SandboxPool(4, memory_limit_in_gib=1) as pool:
            async with asyncio.timeout(5):
                result = await pool.run(convert, (path,))

    A coroutine that is cancelled while it waits ends its guest, and the cancellation goes on when nothing of that is
    left. What still runs when the block is left is cancelled.

    Args:
        max_workers: As ``SandboxExecutor`` has it.
        options: ``limits``, ``worker_timeout_seconds``, ``memory_limit_in_gib``, ``total_memory``, ``hardening``,
            ``backend``, ``start_method`` and ``preload``, as ``ProcessManager`` has them. With "fork" guests see
            the caller as it is when the block is entered.

    Raises:
        TypeError, ValueError, CgroupError: As ``ProcessManager``.
    """

    def __init__(
        self,
        max_workers: int | Literal["auto"] | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        check_names(options)
        self._parameters = Parameters(max_workers=max_workers, **options)
        self._queue: TaskQueue | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: dict[Submission, asyncio.Future[TaskResult]] = {}

    # --- the block ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start a supervisor.

        Raises:
            RuntimeError: The block is entered already. SandboxError: No supervisor can be started.
        """
        if self._queue is not None:
            raise RuntimeError("this SandboxPool is in use; make another for another block")
        queue = TaskQueue(self._parameters)
        try:
            if self._parameters.start_method == "fork":
                queue.start()  # in this thread, which is all that guests will have
            else:
                queue.adopt(await _started_in_thread(queue))  # it imports what is to be preloaded
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(queue.fileno(), self._turn)
        except BaseException:
            queue.close()
            raise
        self._queue = queue
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel what still runs, and come back when nothing of it is left."""
        queue = self._entered()
        try:
            queue.cancel(queue.unfinished())
            self._turn()
            if self._waiters:
                await asyncio.wait(self._waiters.values())
        finally:
            assert self._loop is not None
            self._loop.remove_reader(queue.fileno())
            self._settle(queue.close())
            self._queue = None

    def _entered(self) -> TaskQueue:
        if self._queue is None:
            raise RuntimeError("a SandboxPool runs tasks inside of its block: async with SandboxPool(…) as pool")
        return self._queue

    def _turn(self) -> None:
        """The supervisor has something to say, or tasks were added or cancelled."""
        if self._queue is not None:
            self._settle(self._queue.turn())

    def _settle(self, finished: Iterable[tuple[Submission, TaskResult]]) -> None:
        for submission, result in finished:
            waiter = self._waiters.pop(submission)
            if not waiter.done():
                waiter.set_result(result)

    # --- tasks --------------------------------------------------------------------------------------

    @overload
    async def run(self, task_or_func: Command, **options: Unpack[_Options]) -> TaskResult[CommandOutput]: ...

    @overload
    async def run(self, task_or_func: Task[..., _R], **options: Unpack[_Options]) -> TaskResult[_R]: ...

    @overload
    async def run(
        self,
        task_or_func: Callable[..., Coroutine[Any, Any, _R]],
        args: Iterable[Any] | None = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[_Options],
    ) -> TaskResult[_R]: ...

    @overload
    async def run(
        self,
        task_or_func: Callable[..., _R],
        args: Iterable[Any] | None = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[_Options],
    ) -> TaskResult[_R]: ...

    async def run(
        self,
        task_or_func: Task | Command | Callable[..., Any],
        args: Iterable[Any] | None = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[_Options],
    ) -> TaskResult:
        """Run one task, and wait for its result, whatever its outcome.

        Args:
            task_or_func: A ``Task``, a ``Command``, or a function to be called with ``args`` and ``kwargs``.
            args: Positional arguments of a function.
            kwargs: Keyword arguments of a function.
            options: ``limits``, which those of a ``Task`` or ``Command`` override; ``priority``: higher starts earlier.

        Raises:
            TypeError: It is none of these; or arguments are given beside a task.
            RuntimeError: Not inside of the block.
            CancelledError: The awaiting task was cancelled; nothing of the guest is left.
        """
        if not isinstance(task_or_func, Task | Command):
            task_or_func = Task(task_or_func, args, kwargs)
        elif tuple(args or ()) or kwargs:
            raise TypeError(f"args and kwargs go with a function; {task_or_func!r} has its own")
        submission, waiter = self._submit(task_or_func, **options)
        try:
            return await asyncio.shield(waiter)
        except asyncio.CancelledError:
            await self._end([submission])
            raise

    async def as_completed(
        self, tasks: Iterable[Task | Command] | AsyncIterable[Task | Command], **options: Unpack[_Options]
    ) -> AsyncGenerator[TaskResult, None]:
        """Yield each result as its task completes.

        The iterable is drawn from only as slots come free and results are taken. What runs when the generator is
        closed is cancelled: use ``contextlib.aclosing`` where you leave it early.

        Args:
            tasks: The tasks; an asynchronous iterable is awaited beside them.
            options: As of ``run``.

        Raises:
            TypeError: The iterable gives something else than a task. RuntimeError: Not inside of the block.
        """
        drawn = _Drawn(tasks)
        running: dict[asyncio.Future[TaskResult], Submission] = {}
        most = self._parameters.max_workers * (1 + _AHEAD_PER_WORKER)
        try:
            while True:
                while len(running) < most and (task := drawn.take()) is not _NOTHING:
                    submission, waiter = self._submit(check_task(task), **options)
                    running[waiter] = submission
                waited: list[asyncio.Future[Any]] = [*running, *drawn.pending(wanted=len(running) < most)]
                if not waited:
                    return
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                del waited
                for waiter in [waiter for waiter in running if waiter.done()]:
                    del running[waiter]
                    yield waiter.result()
        finally:
            await drawn.close()
            await self._end(list(running.values()))

    async def stream(
        self, command: Command, *, lines: bool = False, **options: Unpack[_Options]
    ) -> AsyncGenerator[OutputChunk, None]:
        """Yield what a program writes, as it comes; while nothing is taken, the program waits.

        It ends with the program, and when the generator is closed the program is ended: use ``contextlib.aclosing``
        where you leave it early.

        Args:
            command: The program.
            lines: Whether each chunk is a whole line: up to 64 KiB of one that is longer.
            options: As of ``run``.

        Raises:
            Exception: What ``TaskResult.exception`` says, where the program does not succeed.
            RuntimeError: Not inside of the block.
        """
        chunks = _Chunks()
        command = copy.copy(command)
        command.on_output, command.lines = chunks.take, lines
        submission, waiter = self._submit(command, **options)
        waiter.add_done_callback(lambda _: chunks.came.set())
        try:
            while not waiter.done() or chunks.waiting:
                while chunks.waiting:
                    yield chunks.waiting.popleft()
                if not waiter.done():
                    chunks.came.clear()
                    self._entered().resume(submission)
                    await chunks.came.wait()
            if (error := waiter.result().exception) is not None:
                raise error
        finally:
            await self._end([submission])

    def _submit(
        self, task: Task | Command, limits: Limits | None = None, priority: int = 0
    ) -> tuple[Submission, asyncio.Future[TaskResult]]:
        queue = self._entered()
        task = copy.copy(task)  # the same one may be submitted again
        if (further := check_limits(limits)) is not None:
            task.limits = further.overridden_by(task.limits)
        self._parameters.accept(task, stacklevel=3)
        submission = Submission(task, priority)
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[submission] = waiter
        queue.add(submission)
        self._turn()
        return submission, waiter

    async def _end(self, submissions: list[Submission]) -> None:
        """Cancel tasks, and wait until nothing of their guests is left."""
        waiters = [self._waiters[one] for one in submissions if one in self._waiters]
        if self._queue is not None and waiters:
            self._queue.cancel(submissions)
            self._turn()
            await asyncio.wait(waiters)


class _Chunks:
    """What a program wrote and nobody has taken."""

    def __init__(self) -> None:
        self.waiting: deque[OutputChunk] = deque()
        self.came = asyncio.Event()

    def take(self, chunk: OutputChunk) -> object:
        """The callback: nothing more is handed on until somebody takes this."""
        self.waiting.append(chunk)
        self.came.set()
        return PAUSE


class _Drawn:
    """What an iterable gives: at once, or, where it is an asynchronous one, when it has come."""

    def __init__(self, tasks: Iterable[object] | AsyncIterable[object]) -> None:
        self._here = None if isinstance(tasks, AsyncIterable) else iter(tasks)
        self._there = aiter(tasks) if isinstance(tasks, AsyncIterable) else None
        self._next: asyncio.Task[object] | None = None

    def take(self) -> object:
        """The next task; ``_NOTHING`` where there is none now."""
        if self._here is not None:
            return next(self._here, _NOTHING)
        if self._next is None or not self._next.done():
            return _NOTHING
        came, self._next = self._next, None
        try:
            return came.result()
        except StopAsyncIteration:
            self._there = None
            return _NOTHING

    def pending(self, *, wanted: bool) -> list[asyncio.Task[object]]:
        """What to wait for until ``take`` gives something.

        Args:
            wanted: Whether there is room for another task.
        """
        if wanted and self._next is None and self._there is not None:
            self._next = asyncio.create_task(_next(self._there))
        return [] if self._next is None or not wanted else [self._next]

    async def close(self) -> None:
        """Draw no more."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])


async def _next(tasks: AsyncIterator[object]) -> object:
    return await anext(tasks)


async def _started_in_thread(queue: TaskQueue) -> Session:
    """A session that another thread starts. Where this is cancelled meanwhile, that thread closes it."""
    started: deque[Session] = deque()
    is_unwanted = threading.Event()

    def close() -> None:
        with contextlib.suppress(IndexError):  # the other side has taken it
            started.pop().close()

    def start() -> None:
        started.append(queue.started_session())
        if is_unwanted.is_set():
            close()

    try:
        await asyncio.to_thread(start)
    except BaseException:
        is_unwanted.set()
        close()
        raise
    return started.pop()
