"""What a call may be, and what a guest makes new for it: coroutine functions, and random numbers."""
# ruff: noqa: NPY002 - the legacy generator is what is tested

from __future__ import annotations

import asyncio
import functools
import random
import subprocess
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
from support import BackendName, Program, run_all

from gwsandbox import Limits, Outcome, Task, run

StartMethod = Literal["fork", "forkserver"]


# --- coroutine functions ---------------------------------------------------------------------------------


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


class Doubler:
    async def method(self, number: int) -> int:
        return await double(number)

    async def __call__(self, number: int) -> int:
        return await double(number)


async def uses_the_loop(number: int) -> int:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, functools.partial(lambda n: 2 * n, number))


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
@pytest.mark.parametrize(
    "func",
    [double, Doubler().method, Doubler(), functools.partial(double), lambda n: double(n), uses_the_loop],
    ids=["function", "method", "object", "partial", "lambda", "executor"],
)
def test_a_coroutine_function_is_run(backend: BackendName, start_method: StartMethod, func: Callable[..., Any]) -> None:
    result = run(func, (21,), backend=backend, start_method=start_method)
    assert (result.outcome, result.result) == (Outcome.SUCCEEDED, 42), result


async def fails() -> None:
    await asyncio.sleep(0)
    raise KeyError("from within")


def test_what_it_raises_begins_its_traceback(backend: BackendName) -> None:
    result = run(fails, backend=backend)
    assert isinstance(result.exception, KeyError)
    trace = str(result.exception.__cause__)
    assert "in fails" in trace
    assert "asyncio" not in trace
    assert "gwsandbox" not in trace.replace("/tests/", "").partition("in fails")[2]


async def waits() -> None:
    await asyncio.sleep(3600)


def test_its_deadline_holds(backend: BackendName) -> None:
    assert run(waits, backend=backend, limits=Limits(wall_seconds=0.5)).outcome is Outcome.TIMED_OUT


def test_a_caller_within_a_running_loop(backend: BackendName) -> None:
    async def main() -> Any:
        return run(double, (4,), backend=backend)

    assert asyncio.run(main()).result == 8


async def agenerates() -> AsyncIterator[int]:
    yield 1


def generates() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("func", [agenerates, generates])
def test_a_generator_is_not_run_and_cannot_be_sent(backend: BackendName, func: Callable[[], Any]) -> None:
    result = run(func, backend=backend)
    assert result.outcome is Outcome.FAILED
    assert "generator" in result.detail


# --- random numbers --------------------------------------------------------------------------------------


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(np.random.default_rng().random())


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_every_task_draws_numbers_of_its_own(backend: BackendName, start_method: StartMethod) -> None:
    random.seed(1)
    np.random.seed(1)
    options: dict[str, Any] = {"start_method": start_method}
    if start_method == "forkserver":
        options["preload"] = ["numpy.random"]
    drawn = [result.result for result in run_all(backend, [Task(draw) for _ in range(4)], **options)]
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == 4
    assert np.random.rand() == np.random.RandomState(1).rand(), "the caller's own go on as they were"


def test_a_seed_that_a_task_sets_holds(backend: BackendName) -> None:
    def seeded() -> tuple[float, float]:
        random.seed(1)
        np.random.seed(1)
        return random.random(), float(np.random.rand())

    first, second = (result.result for result in run_all(backend, [Task(seeded), Task(seeded)]))
    assert first == second


def test_numpy_is_not_imported_for_it(backend: BackendName) -> None:
    source = f"""
import sys
from gwsandbox import run
print(run(lambda: [name for name in sys.modules if name.startswith("numpy")], backend={backend!r}).result)
"""
    with Program(source, stderr=subprocess.DEVNULL) as program:
        assert program.line() == "[]"


def test_a_traceback_of_a_built_in_function_names_it(backend: BackendName) -> None:
    result = run(int, ("x",), backend=backend)
    assert isinstance(result.exception, ValueError)
    assert "ValueError: invalid literal" in "".join(traceback.format_exception(result.exception))
