"""``SandboxExecutor`` in the place of ``ProcessPoolExecutor``, as CPython's own tests expect it.

As a program it runs test classes of the interpreter's ``test`` package, and without any names them::

    python tests/cpython_pool.py [--standard] [--without=TEST …] [CLASS …]

``--standard`` runs them over the standard executor.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import unittest
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

from gwsandbox import SandboxExecutor
from gwsandbox.model.errors import TransferError

PACKAGE = "test.test_concurrent_futures"
# From Python 3.12 on they are a package's, before that one module's.
_MODULES = (
    "",
    ".test_process_pool",
    ".test_init",
    ".test_shutdown",
    ".test_wait",
    ".test_as_completed",
    ".test_deadlock",
)


class Pool(SandboxExecutor):
    """The executor with the constructor, and what the tests read of the attributes, of the standard one."""

    def __init__(self, max_workers: int | None = None, mp_context: Any = None, **options: Any) -> None:
        method: Any = "fork" if mp_context is None else mp_context.get_start_method()
        super().__init__(max_workers, start_method=method, backend="rlimit", **options)
        self._max_workers = max_workers
        self._processes: dict[int, Any] = {}
        self._call_queue = SimpleNamespace(join_thread=lambda: None)

    @property
    def _broken(self) -> str:
        return self._thread.broken

    @property
    def _executor_manager_thread(self) -> threading.Thread | None:
        return self._thread._thread


def cases() -> dict[str, type[unittest.TestCase]]:
    """The test classes for pools of processes, by name."""
    return {
        name: value
        for module in _modules()
        for name, value in vars(module).items()
        if name.startswith("ProcessPoolFork") and name.endswith("Test") and isinstance(value, type)
    }


def _modules() -> Iterator[Any]:
    for name in _MODULES:
        try:
            yield importlib.import_module(PACKAGE + name)
        except ModuleNotFoundError as error:
            if error.name != PACKAGE + name:
                raise


def _use_ours() -> None:
    """Let the tests find our executor, and our error for what cannot be pickled."""
    here = os.path.dirname(os.path.abspath(__file__))
    paths = [here, *sys.path]
    ours = f"import sys; sys.path[:] = {paths!r}; from cpython_pool import Pool"
    for module in _modules():
        for value in list(vars(module).values()):
            if getattr(value, "executor_type", None) is ProcessPoolExecutor:
                value.executor_type = Pool
        if hasattr(module, "PicklingError"):
            module.PicklingError = TransferError
        if hasattr(module, "assert_python_ok"):
            run = module.assert_python_ok
            module.assert_python_ok = lambda *words, run=run, **options: run(
                *(word.replace("from concurrent.futures import Pool", ours) for word in words), **options
            )
        if hasattr(module, "futures"):
            module.futures = SimpleNamespace(**{**vars(module.futures), "ProcessPoolExecutor": Pool})


def main(words: list[str]) -> int:
    """Run the tests of some classes; what ran goes to stdout as JSON."""
    if not words:
        print("\n".join(cases()))
        return 0
    if "--standard" not in words:
        _use_ours()
    excluded = {word.removeprefix("--without=") for word in words if word.startswith("--without=")}
    suite = unittest.TestSuite()
    for name in (word for word in words if not word.startswith("-")):
        for test in unittest.defaultTestLoader.getTestCaseNames(cases()[name]):
            if test not in excluded:
                suite.addTest(cases()[name](test))
    done = unittest.TextTestRunner().run(suite)
    failed = [str(test) for test, _ in [*done.failures, *done.errors]]
    print(json.dumps({"ran": done.testsRun, "failed": failed, "skipped": len(done.skipped)}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
