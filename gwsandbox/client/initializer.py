"""An executor's initializer: each guest is a fresh process, so each calls it before its function."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

from gwsandbox.model.errors import InitializerFailed
from gwsandbox.model.task import Task
from gwsandbox.model.text import describe

_Pair = tuple[Callable[..., object], tuple[Any, ...]]

_inherited: dict[int, _Pair] = {}  # what a fork brings along: such arguments need not be pickled
_numbers = itertools.count()


class Initializer:
    """Lets tasks begin with a call.

    Args:
        initializer: What to call.
        initargs: Its arguments.
        travels: Whether both are sent with each task; otherwise they come along with the fork.

    Raises:
        TypeError: ``initializer`` cannot be called.
    """

    def __init__(self, initializer: Callable[..., object], initargs: tuple[Any, ...], *, travels: bool) -> None:
        if not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._number = next(_numbers)
        self._pair = (initializer, tuple(initargs))
        self._travels = travels
        if not travels:
            _inherited[self._number] = self._pair

    def begin(self, task: Task) -> Task:
        """``task`` with the call before its own."""
        call = _InitializedCall(self._pair if self._travels else self._number, task.func)
        return Task(call, task.args, task.kwargs, limits=task.limits, returns=task.returns)

    def forget(self) -> None:
        """No further task begins with it."""
        _inherited.pop(self._number, None)


class _InitializedCall:
    def __init__(self, pair: _Pair | int, func: Callable[..., Any]) -> None:
        self._pair = pair
        self._func = func
        self.__qualname__ = getattr(func, "__qualname__", repr(func))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        initializer, initargs = _inherited[self._pair] if isinstance(self._pair, int) else self._pair
        try:
            initializer(*initargs)
        except BaseException as error:
            logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
            raise InitializerFailed(f"the initializer raised {describe(error)}") from error
        return self._func(*args, **kwargs)
