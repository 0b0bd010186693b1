"""``Task``, a Python call to run, and ``Command``, a program to run. Pure data."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, overload

from gwsandbox.model.declared import check_declared
from gwsandbox.model.limits import Limits
from gwsandbox.model.text import shorten, word

if TYPE_CHECKING:
    # A bare ``Task`` is one of any function. Defaults of type variables are the checker's here, and Python 3.13's.
    from typing_extensions import ParamSpec, TypeVar

    P = ParamSpec("P", default=...)
    R = TypeVar("R", default=Any, covariant=True)  # noqa: PLC0105 - as in Task[P, R]
else:
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R", covariant=True)  # noqa: PLC0105 - as in Task[P, R]


class Task(Generic[P, R]):
    """A call of ``func(*args, **kwargs)`` to be made in a process of its own.

    Args:
        func: What to call.
        args: Positional arguments; any iterable.
        kwargs: Keyword arguments.
        limits: Limits of this task; each field that it says overrides the manager's.
        returns: Dataclasses, enums, named tuples and exceptions of your own that its result may hold where
            ``Hardening.results`` is "plain". They are put together without a call of their code.

    Raises:
        TypeError: ``func`` cannot be called; ``args`` is a text, a mapping or not iterable; ``kwargs`` is no mapping;
            or one of ``returns`` is another type.
    """

    __slots__ = ("args", "func", "kwargs", "limits", "returns")

    func: Callable[P, R]

    # Of no parameters in particular: the checkers' join of tasks of two functions would be ``object`` otherwise.
    @overload
    def __init__(
        self: Task[..., R],
        func: Callable[..., Coroutine[Any, Any, R]],
        args: Iterable[Any] | None = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        limits: Limits | None = None,
        returns: Iterable[type] = (),
    ) -> None: ...

    @overload
    def __init__(
        self: Task[..., R],
        func: Callable[..., R],
        args: Iterable[Any] | None = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        limits: Limits | None = None,
        returns: Iterable[type] = (),
    ) -> None: ...

    def __init__(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] | None = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        limits: Limits | None = None,
        returns: Iterable[type] = (),
    ) -> None:
        if not callable(func):
            raise TypeError(f"func must be callable, not {type(func).__name__}: {shorten(func)}")
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise TypeError(f"kwargs must be a mapping, not {type(kwargs).__name__}: {shorten(kwargs)}")
        for key in kwargs or ():
            if not isinstance(key, str):
                raise TypeError(f"keyword names must be text, not {type(key).__name__}: {shorten(key)}")
        self.func = func
        self.args = _positional(args)
        self.kwargs: Mapping[str, Any] = {} if kwargs is None else kwargs
        self.limits = check_limits(limits)
        self.returns = check_declared(returns) if returns != () else ()

    def __repr__(self) -> str:
        name = getattr(self.func, "__name__", None) or repr(self.func)
        args = ", ".join(map(shorten, self.args))
        kwargs = ", ".join(f"{key}={shorten(value)}" for key, value in self.kwargs.items())
        return f"Task(func={name}, args=({args}), kwargs=({kwargs}))"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Task):
            return NotImplemented
        return (self.func, self.args, dict(self.kwargs), self.limits) == (
            other.func,
            other.args,
            dict(other.kwargs),
            other.limits,
        )

    def __hash__(self) -> int:
        return hash((self.func, self.args, frozenset(self.kwargs.items()), self.limits))


def _positional(args: Iterable[Any] | None) -> tuple[Any, ...]:
    if args is None:
        return ()
    if isinstance(args, Mapping):
        raise TypeError(f"args must be positional arguments, not a mapping; write kwargs={shorten(args)}")
    if isinstance(args, str | bytes | bytearray):  # an iterable of its characters, which nobody means
        raise TypeError(f"args must be the arguments, not one {type(args).__name__}; write args=({shorten(args)},)")
    try:
        iterator = iter(args)
    except TypeError:
        name = type(args).__name__
        raise TypeError(f"args is not iterable, but of type {name}; write args=({shorten(args)},)") from None
    return tuple(iterator)


class Command:
    """A program to be run in a process of its own; queued like a ``Task``.

    Its ``TaskResult.result`` is a ``CommandOutput``.

    Args:
        argv: Program and arguments; the program is looked up in ``PATH`` of ``env``.
        stdin: Bytes that the program reads from its standard input; ``None``: nothing (/dev/null). Or an iterable of
            bytes, drawn from in the caller as the program reads.
        cwd: Folder to run in; ``None``: the caller's.
        env: The whole environment; ``None``: the caller's.
        limits: Limits of this task; each field that it says overrides the manager's.
        on_output: Called in the caller with each ``OutputChunk`` as it comes, under the output limit; ``result`` does
            not keep it. While this does not come back, the program waits when it has written 128 KiB more.
        lines: Whether each chunk is a whole line: up to 64 KiB of one that is longer.

    Raises:
        TypeError: An argument is of the wrong type. ValueError: ``argv`` is empty or holds a NUL byte.
    """

    __slots__ = ("argv", "cwd", "env", "limits", "lines", "on_output", "stdin")

    def __init__(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        stdin: bytes | Iterable[bytes] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        on_output: Callable[[OutputChunk], object] | None = None,
        lines: bool = False,
    ) -> None:
        if isinstance(argv, str | bytes):
            raise TypeError(f"argv must be a sequence of arguments, not one text: {shorten(argv)}")
        if not isinstance(argv, Iterable):
            raise TypeError(f"argv must be a sequence of arguments, not {type(argv).__name__}: {shorten(argv)}")
        if on_output is not None and not callable(on_output):
            raise TypeError(f"on_output must be callable, not {type(on_output).__name__}: {shorten(on_output)}")
        self.argv: tuple[str, ...] = tuple(_plain(os.fsdecode(argument)) for argument in argv)
        if not self.argv or not self.argv[0]:
            raise ValueError("argv must name a program; it is empty")
        self.stdin = _check_stdin(stdin)
        self.on_output = on_output
        self.lines = lines
        self.cwd = None if cwd is None else _plain(os.fsdecode(cwd))
        self.env = None if env is None else _check_env(env)
        texts = [*self.argv, self.cwd or "", *(self.env or {}), *(self.env or {}).values()]
        if nul := next((text for text in texts if "\0" in text), None):
            raise ValueError(f"a program's argument, folder or variable cannot hold a NUL byte: {shorten(nul)}")
        self.limits = check_limits(limits)

    def __repr__(self) -> str:
        return f"Command(argv=({', '.join(map(shorten, self.argv))}))"

    @property
    def has_streams(self) -> bool:
        """Whether the caller feeds it, or gets its output, while it runs."""
        return self.on_output is not None or not (self.stdin is None or isinstance(self.stdin, bytes))

    def without_streams(self) -> Command:
        """What of it travels to its process."""
        stdin = self.stdin if isinstance(self.stdin, bytes) else None
        return Command(self.argv, stdin=stdin, cwd=self.cwd, env=self.env, limits=self.limits)

    def _parts(self) -> tuple[object, ...]:
        env = None if self.env is None else frozenset(self.env.items())
        stdin = self.stdin if self.stdin is None or isinstance(self.stdin, bytes) else id(self.stdin)
        return self.argv, stdin, self.cwd, env, self.limits, self.on_output, self.lines

    def __eq__(self, other: object) -> bool:
        return self._parts() == other._parts() if isinstance(other, Command) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._parts())


def _check_stdin(stdin: object) -> Any:
    if isinstance(stdin, bytearray | memoryview):
        return bytes(stdin)
    if stdin is not None and (isinstance(stdin, str) or not isinstance(stdin, Iterable)):
        raise TypeError(f"stdin must be bytes or an iterable of them, not {type(stdin).__name__}: {shorten(stdin)}")
    return stdin


class OutputChunk(NamedTuple):
    """What a ``Command`` has just written.

    Args:
        stream: "stdout" or "stderr".
        data: The bytes.
    """

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """What a ``Command`` wrote. Bytes past its output limit are not kept."""

    stdout: bytes
    stderr: bytes


def _check_env(env: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping, not {type(env).__name__}: {shorten(env)}")
    for pair in env.items():
        if not all(isinstance(part, str) for part in pair):
            raise TypeError(f"env must map names to texts, not {shorten(pair)}")
        if not pair[0] or "=" in pair[0]:
            raise ValueError(f"not the name of an environment variable: {shorten(pair[0])}")
    return {_plain(name): _plain(value) for name, value in env.items()}


def _plain(text: str) -> str:
    """A ``str`` of a class of the caller's own (an enum's member, an element of an array) as what execve would take."""
    return str.__str__(text)


def words_of(task: Task | Command) -> list[str]:
    """What was run, as a list of words: an argv, or a function's name and its arguments, each of bearable length."""
    if isinstance(task, Command):
        return list(task.argv)
    return [getattr(task.func, "__qualname__", None) or shorten(task.func), *map(word, task.args)]


def check_limits(limits: Limits | None) -> Limits | None:
    """``limits`` as they are.

    Raises:
        TypeError: They are neither ``Limits`` nor ``None``.
    """
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits must be gwsandbox.Limits or None, not {type(limits).__name__}: {limits!r}")
    return limits
