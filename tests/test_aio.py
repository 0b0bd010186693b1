"""``gwsandbox.aio``: tasks for the coroutines of an event loop, ended when these are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support import PACE, BackendName, Watched, sleep_for_ever, times

from gwsandbox import Command, Limits, Outcome, Task
from gwsandbox.aio import SandboxPool


def square(n: int) -> int:
    return n * n


async def double(n: int) -> int:
    return 2 * n


def say_and_sleep(fd: int) -> None:
    os.write(fd, b"%8d" % os.getpid())
    sleep_for_ever()


async def read(fd: int, count: int = 1) -> list[int]:
    """The pids that so many guests say."""
    return [int(await asyncio.to_thread(os.read, fd, 8)) for _ in range(count)]


def in_pool(backend: BackendName, main: Any, workers: int = 2, **options: Any) -> Any:
    """Run a coroutine function with a pool, and see that the loop gets an exception from nowhere."""
    problems: list[dict[str, Any]] = []

    async def with_pool() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        async with SandboxPool(workers, backend=backend, **options) as pool:
            return await main(pool)

    found = asyncio.run(with_pool())
    assert not problems
    return found


# --- run -----------------------------------------------------------------------------------------------------


def test_run_gives_results_whatever_their_outcome(backend: BackendName) -> None:
    async def main(pool: SandboxPool) -> tuple[Any, ...]:
        limits = Limits(wall_seconds=0.1 * PACE)
        return await asyncio.gather(
            pool.run(square, (3,)),
            pool.run(double, kwargs={"n": 4}),
            pool.run(Command(["echo", "a"])),
            pool.run(os.abort),
            pool.run(Task(sleep_for_ever), limits=limits),
            pool.run(Task(square, ("a",))),
        )

    results = in_pool(backend, main)
    assert [result.outcome for result in results] == [
        *(Outcome.SUCCEEDED,) * 3,
        Outcome.CRASHED,
        Outcome.TIMED_OUT,
        Outcome.FAILED,
    ]
    assert (results[0].result, results[1].result, results[2].result.stdout) == (9, 8, b"a\n")


def test_no_thread_is_started(backend: BackendName) -> None:
    async def main(pool: SandboxPool) -> int:
        await asyncio.gather(*(pool.run(square, (n,)) for n in range(20)))
        return threading.active_count()

    assert in_pool(backend, main) == 1


def test_it_runs_in_its_block_only(backend: BackendName) -> None:
    async def main() -> None:
        pool = SandboxPool(1, backend=backend)
        with pytest.raises(RuntimeError, match="inside of its block"):
            await pool.run(square, (1,))
        async with pool:
            with pytest.raises(RuntimeError, match="in use"):
                await pool.__aenter__()
            with pytest.raises(TypeError, match="has its own"):
                await pool.run(Task(square, (1,)), (2,))  # type: ignore[call-overload]
        async with pool:
            assert (await pool.run(square, (5,))).result == 25

    asyncio.run(main())


def test_in_a_clean_interpreter(backend: BackendName) -> None:
    async def main(pool: SandboxPool) -> Any:
        return (await pool.run(lambda: 5)).result

    assert in_pool(backend, main, start_method="forkserver") == 5


# --- cancelling ----------------------------------------------------------------------------------------------


def test_a_block_that_is_cancelled_as_it_is_entered_leaves_nothing(backend: BackendName) -> None:
    async def enter() -> None:
        async with SandboxPool(1, backend=backend, start_method="forkserver", preload=("decimal",)):
            pass

    async def main() -> None:
        entering = asyncio.create_task(enter())
        await asyncio.sleep(0)  # it goes as far as it can without the thread
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancel", "timeout", "group"])
def test_a_cancelled_coroutine_ends_its_guest(backend: BackendName, how: str, pipe: tuple[int, int]) -> None:
    async def ended(pool: SandboxPool, begun: asyncio.Event) -> None:
        endless = pool.run(say_and_sleep, (pipe[1],))
        if how == "cancel":
            task = asyncio.create_task(endless)
            await begun.wait()
            task.cancel()
            await task
        elif how == "timeout":
            async with asyncio.timeout(None) as timeout:
                asyncio.create_task(begun.wait()).add_done_callback(lambda _: timeout.reschedule(0))
                await endless
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(endless)
                await begun.wait()
                raise ZeroDivisionError

    async def main(pool: SandboxPool) -> int:
        begun = asyncio.Event()
        ending = asyncio.create_task(ended(pool, begun))
        with Watched(*await read(pipe[0])) as watched:
            begun.set()
            with pytest.raises((asyncio.CancelledError, TimeoutError, ExceptionGroup)):
                await ending
            assert not watched.living_after(0.01)
        return (await pool.run(square, (3,))).result

    assert in_pool(backend, main, workers=1) == 9


def test_many_are_cancelled_at_once(backend: BackendName, pipe: tuple[int, int]) -> None:
    count = times(40)

    async def main(pool: SandboxPool) -> None:
        running = [asyncio.create_task(pool.run(say_and_sleep, (pipe[1],))) for _ in range(count + 10)]
        with Watched(*await read(pipe[0], count)) as watched:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            assert not watched.living_after(0.01)
        assert all(task.cancelled() for task in running)
        assert (await pool.run(square, (3,))).result == 9

    in_pool(backend, main, workers=count)


def test_leaving_the_block_ends_what_runs(backend: BackendName, pipe: tuple[int, int]) -> None:
    async def main() -> Outcome:
        async with SandboxPool(1, backend=backend) as pool:
            running = asyncio.create_task(pool.run(say_and_sleep, (pipe[1],)))
            (pid,) = await read(pipe[0])
        with Watched(pid) as watched:
            assert not watched.living_after(0.01)
        return (await running).outcome

    assert asyncio.run(main()) is Outcome.CANCELLED


def test_another_supervisor_takes_the_place_of_one_that_is_killed(backend: BackendName) -> None:
    async def main(pool: SandboxPool) -> tuple[Outcome, Any]:
        lost = await pool.run(lambda: os.kill(os.getppid(), 9))
        return lost.outcome, (await pool.run(square, (3,))).result

    assert in_pool(backend, main)[1] == 9


# --- as_completed --------------------------------------------------------------------------------------------


def numbers(drawn: list[int]) -> Iterator[Task]:
    for n in range(1000):
        drawn.append(n)
        yield Task(square, (n,))


def test_as_completed_draws_only_what_it_needs(backend: BackendName) -> None:
    async def main(pool: SandboxPool) -> list[int]:
        drawn: list[int] = []
        async with contextlib.aclosing(pool.as_completed(numbers(drawn))) as results:
            got = [(await anext(results)).result for _ in range(4)]
        assert set(got) <= {n * n for n in range(10)}
        return drawn

    assert len(in_pool(backend, main)) <= 4 + 2 * 3


def test_as_completed_from_an_asynchronous_iterable(backend: BackendName) -> None:
    async def main(pool: SandboxPool) -> list[int]:
        first = asyncio.Event()

        async def tasks() -> AsyncIterator[Task]:
            yield Task(square, (1,))
            await first.wait()
            yield Task(square, (2,))

        got = []
        async for result in pool.as_completed(tasks()):
            got.append(result.result)
            first.set()
        return got

    assert in_pool(backend, main) == [1, 4]


def test_leaving_as_completed_ends_what_runs(backend: BackendName, pipe: tuple[int, int]) -> None:
    async def main(pool: SandboxPool) -> None:
        tasks = [Task(say_and_sleep, (pipe[1],)), Task(square, (2,))]
        async with contextlib.aclosing(pool.as_completed(tasks)) as results:
            assert (await anext(results)).result == 4
            pids = await read(pipe[0])
        with Watched(*pids) as watched:
            assert not watched.living_after(0.01)

    in_pool(backend, main)


@pytest.mark.parametrize("wrong", [None, square])
def test_what_is_no_task_is_an_error(backend: BackendName, wrong: Any) -> None:
    async def main(pool: SandboxPool) -> None:
        with pytest.raises(TypeError, match="must be a Task"):
            async for _ in pool.as_completed([wrong]):
                pass

    in_pool(backend, main)
