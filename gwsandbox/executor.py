"""``SandboxExecutor``: a ``concurrent.futures.Executor`` whose every call runs in a sandbox of its own."""

from __future__ import annotations

import copy
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from concurrent.futures._base import CANCELLED, PENDING, RUNNING
from dataclasses import replace
from typing import Any, Literal, ParamSpec, TypeVar, Unpack, overload

from gwsandbox.client.executor_thread import Ending, ExecutorThread
from gwsandbox.client.initializer import Initializer
from gwsandbox.client.parameters import Parameters, PoolOptions, check_names
from gwsandbox.client.results import never_started
from gwsandbox.client.task_queue import Submission
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command, CommandOutput, Task, check_limits

_P = ParamSpec("_P")
_R = TypeVar("_R")


class SandboxFuture(Future[_R]):
    """The future of a task.

    It is done when nothing of the task's guest lives any more. ``result`` raises what ``exception`` gives: what the
    function raised, with the guest's traceback as its cause, or an error that says how the guest ended.
    """

    def __init__(self, thread: ExecutorThread, submission: Submission, task: Task | Command) -> None:
        super().__init__()
        self._thread = thread
        self._submission: Submission | None = submission
        self._task: Task | Command | None = task
        self._task_result: TaskResult | None = None
        self._is_unwanted = False

    @property
    def task_result(self) -> TaskResult[_R] | None:
        """The whole ``TaskResult`` once this is done, of a cancelled task too; ``None`` before."""
        task = self._task
        if self._task_result is None and task is not None and self.cancelled():
            return never_started(task)
        return self._task_result

    def cancel(self) -> bool:
        """Cancel the task, or end it where it runs; False where it is done.

        Unlike the futures of other executors, this ends what runs. The future is cancelled as soon as nothing of the
        guest is left, whatever it gave meanwhile.
        """
        with self._condition:
            submission = self._submission
            self._is_unwanted |= self._state == RUNNING and submission is not None
        if not self._is_unwanted and not super().cancel():
            return False
        if submission is not None:
            self._thread.cancel(submission)
        return True

    # --- for the executor's thread ------------------------------------------------------------------

    def begin(self) -> bool:
        """See ``executor_thread.Settled``."""
        return self.set_running_or_notify_cancel()

    def settle(self, result: TaskResult, broken: str) -> None:
        """See ``executor_thread.Settled``."""
        if self._task is not None and result.task is not self._task:
            result = replace(result, task=self._task)
        if not result.success:
            from gwsandbox.client.broken import as_broken  # noqa: PLC0415 - it imports multiprocessing

            result = as_broken(result, broken)
        with self._condition:
            self._task_result, self._task, self._submission = result, None, None
            is_cancelled = self._is_unwanted or result.outcome is Outcome.CANCELLED
            if is_cancelled and self._state == RUNNING:
                self._state = PENDING  # the one from which a future can be cancelled
        if is_cancelled:
            super().cancel()
        if self._state in {PENDING, CANCELLED} and not self.set_running_or_notify_cancel():
            return
        try:
            if result.exception is not None:
                self.set_exception(result.exception)
            else:
                self.set_result(result.result)
        except InvalidStateError:
            return  # its user has cancelled or settled it


class SandboxExecutor(Executor):
    """Runs each call in a process, and where the host allows it a cgroup, of its own.

    ::

        with SandboxExecutor(4, memory_limit_in_gib=1, worker_timeout_seconds=5) as executor:
            futures = [executor.submit(convert, path) for path in paths]
            large = executor.with_limits(memory="4GiB").submit(convert, "large.doc")

    A task that crashes, hangs or takes too much fails alone. It may be used from many threads at once, and for as long
    as you like. Guests see the caller as it is at the first ``submit``, or at the last ``refresh``; what is submitted
    travels by pickle, and callables that pickle cannot find by name by cloudpickle.

    Args:
        max_workers: Tasks at a time; ``None``: the logical CPUs that this process may use. "auto": of those only as
            many as there is memory for, by the memory limit of a task.
        initializer: Called with ``initargs`` in each guest before its function. Where it raises before any task has
            succeeded, the executor is broken, as a ``ProcessPoolExecutor`` is.
        initargs: Its arguments.
        options: ``limits``, ``worker_timeout_seconds``, ``memory_limit_in_gib``, ``total_memory``, ``hardening``,
            ``backend``, ``start_method`` and ``preload``, as ``ProcessManager`` has them.

    Raises:
        TypeError, ValueError, CgroupError: As ``ProcessManager``; or ``max_workers`` is below 1.
    """

    def __init__(
        self,
        max_workers: int | Literal["auto"] | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **options: Unpack[PoolOptions],
    ) -> None:
        if isinstance(max_workers, int) and max_workers < 1:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers}")
        check_names(options)
        self._parameters = Parameters(max_workers=max_workers, **options)
        self._limits: Limits | None = None
        self._priority = 0
        self._initializer: Initializer | None = None
        if initializer is not None:
            self._initializer = Initializer(initializer, initargs, travels=self._parameters.start_method != "fork")
        self._shared = _Shared(self._parameters, self._initializer)
        self._thread = self._shared.thread

    # --- views --------------------------------------------------------------------------------------

    def with_limits(self, limits: Limits | None = None, **fields: Any) -> SandboxExecutor:
        """A view of this executor with further limits for what is submitted to it; a task's own override them.

        Args:
            limits: The limits.
            fields: Or fields of ``Limits``.

        Raises:
            TypeError, ValueError: As ``Limits``.
        """
        view = copy.copy(self)
        said = (check_limits(limits) or Limits()).overridden_by(Limits(**fields))
        view._limits = said if self._limits is None else self._limits.overridden_by(said)
        return view

    def with_priority(self, priority: int) -> SandboxExecutor:
        """A view of this executor; what is submitted to it starts before all that waits with a lower priority.

        Args:
            priority: Higher is earlier; 0 where nothing is said.
        """
        view = copy.copy(self)
        view._priority = priority
        return view

    # --- tasks --------------------------------------------------------------------------------------

    @overload
    def submit(self, fn: Command, /) -> SandboxFuture[CommandOutput]: ...

    @overload
    def submit(self, fn: Task[..., _R], /) -> SandboxFuture[_R]: ...

    @overload
    def submit(
        self, fn: Callable[_P, Coroutine[Any, Any, _R]], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> SandboxFuture[_R]: ...

    @overload
    def submit(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> SandboxFuture[_R]: ...

    def submit(self, fn: Callable[..., Any] | Task | Command, /, *args: Any, **kwargs: Any) -> SandboxFuture[Any]:
        """Run ``fn(*args, **kwargs)``, a ``Task`` or a ``Command``.

        Raises:
            TypeError: It is none of these; or arguments are given beside a task, which has its own.
            ValueError: Its memory limit does not fit under the total.
            RuntimeError: The executor is shut down, or belongs to another process.
            BrokenProcessPool: The initializer fails.
            SandboxError: No supervisor can be started.
        """
        if not isinstance(fn, Task | Command):
            task: Task | Command = Task(fn, args, kwargs)
        elif args or kwargs:
            raise TypeError(f"arguments go with a function; {fn!r} has its own")
        else:
            task = copy.copy(fn)  # the same one may be submitted again
        if self._limits is not None:
            task.limits = self._limits.overridden_by(task.limits)
        self._parameters.accept(task, stacklevel=2)
        begun = task
        if self._initializer is not None and isinstance(task, Task):
            begun = self._initializer.begin(task)
        submission = Submission(begun, self._priority)
        future: SandboxFuture[Any] = SandboxFuture(self._thread, submission, task)
        self._thread.submit(submission, future)
        return future

    def map(
        self,
        fn: Callable[..., _R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[_R]:
        """The values of ``fn`` over the iterables, in order, as ``Executor.map`` of Python 3.14.

        Leaving it early ends what runs.

        Args:
            fn: What to call.
            iterables: Its arguments.
            timeout: Seconds from now in which each value must have come.
            chunksize: Calls to make in one guest, which together are under the limits of a task.
            buffersize: Tasks whose values have not been taken, at most; ``None``: all are submitted at once.

        Raises:
            ValueError, TypeError: ``chunksize`` or ``buffersize`` is no positive number.
            TimeoutError: By the iterator, when the time has passed.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else time.monotonic() + timeout
        rows = zip(*iterables, strict=False)
        submitted: Iterator[SandboxFuture[Any]]
        if chunksize == 1:
            submitted = (self.submit(fn, *row) for row in rows)
        else:
            submitted = (self.submit(_call_each, fn, chunk) for chunk in _chunks(rows, chunksize))
        first = deque(itertools.islice(submitted, buffersize))
        values = _values(first, submitted, end)
        return values if chunksize == 1 else itertools.chain.from_iterable(map(_given_away, values))

    # --- the end ------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Let guests of tasks that start from now on see the caller as it is at this moment.

        With ``start_method="fork"`` they see modules, globals and code as they were at the first ``submit``, or when
        this was last called. What runs goes on.

        Raises:
            RuntimeError, SandboxError: As ``submit``.
        """
        self._thread.refresh()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as the base class has it
        """Take no more tasks, and end when the last one has its result. A view shuts down all.

        Args:
            wait: Whether to come back only when nothing is left.
            cancel_futures: Whether to cancel what has not been sent to the supervisor.
        """
        self._thread.shutdown(Ending.PENDING if cancel_futures else Ending.NOTHING, wait=wait)

    def terminate_workers(self) -> None:
        """Shut down without waiting: what waits is cancelled, and the guests that run get SIGTERM."""
        self._thread.shutdown(Ending.TERMINATE)

    def kill_workers(self) -> None:
        """Shut down without waiting: what waits and what runs is cancelled."""
        self._thread.shutdown(Ending.KILL)


class _Shared:
    """What an executor and its views have in common. When the last of them is forgotten, the thread ends."""

    def __init__(self, parameters: Parameters, initializer: Initializer | None) -> None:
        self.thread = ExecutorThread(parameters, ended=None if initializer is None else initializer.forget)
        weakref.finalize(self, self.thread.shutdown).atexit = False


def _chunks(rows: Iterable[tuple[Any, ...]], size: int) -> Iterator[tuple[tuple[Any, ...], ...]]:
    iterator = iter(rows)
    while chunk := tuple(itertools.islice(iterator, size)):
        yield chunk


def _call_each(fn: Callable[..., _R], rows: tuple[tuple[Any, ...], ...]) -> list[_R]:
    return [fn(*row) for row in rows]


def _values(futures: deque[SandboxFuture[Any]], more: Iterator[SandboxFuture[Any]], end: float | None) -> Iterator[Any]:
    """The value of each; as one is taken, another is submitted. No reference is kept to what was given away."""
    try:
        while futures:
            futures[0].exception(None if end is None else end - time.monotonic())
            futures.extend(itertools.islice(more, 1))
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()


def _given_away(values: list[_R]) -> Iterator[_R]:
    values.reverse()
    while values:
        yield values.pop()
