"""What a task may do in its guest: threads, processes, coroutines, random numbers, and what stays of it in the caller."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from support import BackendName, run_all, run_one

from gwsandbox import Outcome, Task, TaskResult, run


def test_guests_draw_different_random_numbers(backend: BackendName) -> None:
    random.seed(1)
    results = run_all(backend, [Task(random.random) for _ in range(3)])
    assert len({result.result for result in results}) == 3


def use_threads() -> int:
    found: list[int] = []
    threads = [threading.Thread(target=found.append, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found)


def use_asyncio() -> str:
    async def main() -> str:
        process = await asyncio.create_subprocess_exec("echo", "hello", stdout=subprocess.PIPE)
        output, _ = await process.communicate()
        await asyncio.sleep(0)
        return output.decode()

    return asyncio.run(main())


def _double(n: int) -> int:
    return 2 * n


def use_multiprocessing() -> list[int]:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        return pool.map(_double, range(5))


def use_a_queue() -> int:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=queue.put, args=(7,))
    process.start()
    value: int = queue.get()
    process.join()
    return value


def use_subprocess() -> str:
    return subprocess.run(["sh", "-c", "echo $((6 * 7))"], capture_output=True, check=True, text=True).stdout


@pytest.mark.parametrize(
    ("func", "expected"),
    [
        (use_threads, 10),
        (use_asyncio, "hello\n"),
        pytest.param(
            use_multiprocessing, [0, 2, 4, 6, 8], marks=pytest.mark.filterwarnings("ignore::DeprecationWarning")
        ),
        (use_a_queue, 7),
        (use_subprocess, "42\n"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_task_may_use_threads_and_processes(backend: BackendName, func: Any, expected: object) -> None:
    result = run_one(backend, func)
    assert result.result == expected, result


def test_threads_that_the_function_left_are_waited_for(backend: BackendName) -> None:
    reader, writer = os.pipe()
    go = threading.Event()

    def leave_a_thread() -> str:
        def work() -> None:
            go.wait()
            os.write(writer, b"thread done")

        threading.Thread(target=work).start()
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        go.set()
        return "returned"

    assert run_one(backend, leave_a_thread).result == "returned"
    assert os.read(reader, 100) == b"thread done"
    os.close(reader)
    os.close(writer)


def test_the_callers_own_multiprocessing_children_are_left_alone(backend: BackendName) -> None:
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe()
    process = context.Process(target=reader.recv, daemon=True)
    process.start()
    assert run_one(backend, use_a_queue).result == 7
    assert process.is_alive()
    writer.send(1)
    process.join()
    process.close()
    reader.close()
    writer.close()


def test_garbage_is_collected_if_the_caller_collects_it(backend: BackendName) -> None:
    import gc

    assert run_one(backend, gc.isenabled).result is True
    gc.disable()
    try:
        assert run_one(backend, gc.isenabled).result is False
    finally:
        gc.enable()


def test_folder_and_environment_are_the_callers(
    backend: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_NAME", "some value")
    for start_method in ("fork", "forkserver"):
        result = run(_folder_and_environment, backend=backend, start_method=start_method)
        assert result.result == (str(tmp_path), "some value")


def _folder_and_environment() -> tuple[str, str]:
    return os.getcwd(), os.environ["SOME_NAME"]


# --- coroutine functions, generators ---------------------------------------------------------------------


async def add(one: int, two: int = 2) -> int:
    await asyncio.sleep(0)
    return one + two


class Adder:
    async def __call__(self, one: int) -> int:
        return await add(one)

    async def method(self, one: int) -> int:
        return await add(one, 3)


ASYNC: list[Any] = [add, functools.partial(add, two=5), Adder(), Adder().method, functools.partial(Adder())]


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_coroutine_functions_are_run(start_method: Literal["fork", "forkserver"]) -> None:
    async def in_a_loop() -> list[TaskResult]:
        """The caller's own loop is not the guest's."""
        return run_all("rlimit", [Task(func, (1,)) for func in ASYNC], workers=1, start_method=start_method)

    assert [result.result for result in asyncio.run(in_a_loop())] == [3, 6, 3, 4, 3]


def test_a_coroutine_function_that_raises(backend: BackendName) -> None:
    async def fail() -> None:
        raise ValueError("no document")

    result = run(fail, backend=backend)
    assert (result.outcome, repr(result.exception)) == (Outcome.FAILED, "ValueError('no document')")


def test_a_generator_function_has_no_value_that_could_be_sent(backend: BackendName) -> None:
    def generate() -> Iterator[int]:
        yield 1

    result = run(generate, backend=backend)
    assert result.outcome is Outcome.FAILED
    assert "generator" in result.detail
