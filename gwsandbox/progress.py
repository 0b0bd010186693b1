"""``progress``: a bar beside results as they come."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gwsandbox.model.result import TaskResult

_SECONDS_BETWEEN_REFRESHES = 0.1


def progress(results: Iterable[TaskResult], total: int | None = None) -> Iterator[TaskResult]:
    """Yield the results, and show how many have come and how many of these failed.

    ::

        for result in progress(manager.as_completed(), total=len(paths)):
            ...

    The bar is of tqdm, in a notebook too, else of rich; without both there is none. It starts no thread, for guests
    may be forked of this process.

    Args:
        results: As of ``ProcessManager.as_completed``.
        total: How many there will be; ``None``: it is not known.
    """
    with _bar(total) as advance:
        for failed, result in _counted(results):
            advance(failed)
            yield result


def _counted(results: Iterable[TaskResult]) -> Iterator[tuple[int, TaskResult]]:
    failed = 0
    for result in results:
        failed += not result.success
        yield failed, result


@contextlib.contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int], None]]:
    """A function that counts one more, and gets the number of failures so far."""
    if (tqdm := _module("tqdm.auto")) is not None:
        # Its monitor is a thread.
        kind: Any = type("Bar", (tqdm.tqdm,), {"monitor_interval": 0})
        with kind(total=total, unit="task") as bar:
            yield lambda failed: _advance_tqdm(bar, failed)
    elif (rich := _module("rich.progress")) is not None:
        with rich.Progress(auto_refresh=False) as bar:
            yield _Rich(bar, total).advance
    else:
        yield _show_nothing


def _advance_tqdm(bar: Any, failed: int) -> None:
    if failed:
        bar.set_postfix(failed=failed, refresh=False)
    bar.update()


def _show_nothing(_failed: int) -> None:
    """Without a library there is no bar."""


class _Rich:
    def __init__(self, bar: Any, total: int | None) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total)
        self._shown_at = 0.0

    def advance(self, failed: int) -> None:
        self._bar.update(self._task, advance=1, description=f"{failed} failed" if failed else "")
        if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_REFRESHES:
            self._bar.refresh()
            self._shown_at = time.monotonic()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
