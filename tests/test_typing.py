"""What a checker of types knows of tasks and results. mypy reads this file too, and an ignore that it needs not fails."""

from __future__ import annotations

from typing import Any, assert_type

from gwsandbox import Command, CommandOutput, Limits, ProcessManager, Task, TaskResult, run
from gwsandbox.executor import SandboxExecutor, SandboxFuture


def square(n: int) -> int:
    return n * n


async def shout(text: str) -> str:
    return text.upper()


def test_a_run_has_the_type_of_its_function() -> None:
    assert assert_type(run(square, (3,), backend="rlimit"), TaskResult[int]).result == 9
    assert assert_type(run(shout, ("a",), backend="rlimit"), TaskResult[str]).result == "A"
    assert assert_type(run(Task(square, (2,)), backend="rlimit").result, int) == 4
    output = assert_type(run(Command(["echo", "a"]), backend="rlimit").result, CommandOutput)
    assert output.stdout == b"a\n"
    text: str = run(square, (3,), backend="rlimit").result  # type: ignore[assignment]
    assert str(text) == "9"


def test_a_future_has_the_type_of_its_function() -> None:
    with SandboxExecutor(1, backend="rlimit") as executor:
        future = assert_type(executor.submit(square, 3), SandboxFuture[int])
        assert assert_type(future.result(), int) == 9
        assert assert_type(executor.submit(shout, text="a").result(), str) == "A"
        assert assert_type(executor.submit(Task(square, (2,))).result(), int) == 4
        assert executor.submit(Command(["true"])).result().stdout == b""
        assert assert_type(list(executor.map(square, [1, 2])), list[int]) == [1, 4]
        assert isinstance(executor.submit(square, "3").exception(), TypeError)  # type: ignore[call-overload]


def test_a_bare_task_is_one_of_any_function() -> None:
    tasks = [Task(square, (1,)), Task(sorted, ([2, 1],)), Task(lambda: None, limits=Limits(wall_seconds=60))]
    mine: Task[[int], int] = Task(square, (3,))
    assert assert_type(mine.func(2), int) == 4
    with ProcessManager(1, backend="rlimit") as manager:
        manager.queue_tasks(tasks)
        manager.queue_task(Task(lambda n: n + 1, (1,)))
        results = assert_type(list(manager.as_completed()), list[TaskResult[Any]])
    assert [result.result for result in results] == [1, [1, 2], None, 2]
