"""Programs whose output is handed on while they run, and that are fed by an iterable."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PACE, BackendName, Watched

from gwsandbox import Command, CommandOutput, Limits, Outcome, OutputChunk, ProcessManager, SandboxExecutor, run
from gwsandbox.aio import SandboxPool

TALK = ["sh", "-c", "echo one; echo two >&2; while read line; do echo got $line; done; printf end"]


def by_manager(command: Command, backend: BackendName) -> Any:
    return run(command, backend=backend)


def by_manager_late(command: Command, backend: BackendName) -> Any:
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_tasks([command])
    return manager.task_results[0]


def by_executor(command: Command, backend: BackendName) -> Any:
    with SandboxExecutor(1, backend=backend) as executor:
        future = executor.submit(command)
    return future.task_result


def by_pool(command: Command, backend: BackendName) -> Any:
    async def main() -> Any:
        async with SandboxPool(1, backend=backend) as pool:
            return await pool.run(command)

    return asyncio.run(main())


Runner = Callable[[Command, BackendName], Any]


@pytest.fixture(params=[by_manager, by_manager_late, by_executor, by_pool])
def runner(request: pytest.FixtureRequest) -> Runner:
    found: Runner = request.param
    return found


def joined(chunks: list[OutputChunk], stream: str) -> bytes:
    return b"".join(chunk.data for chunk in chunks if chunk.stream == stream)


def test_output_and_input(backend: BackendName, runner: Runner) -> None:
    chunks: list[OutputChunk] = []
    result = runner(Command(TALK, stdin=iter([b"a\nb", b"\n"]), on_output=chunks.append), backend)
    assert (result.outcome, result.result) == (Outcome.SUCCEEDED, CommandOutput(b"", b""))
    assert joined(chunks, "stdout") == b"one\ngot a\ngot b\nend"
    assert joined(chunks, "stderr") == b"two\n"


def test_whole_lines(backend: BackendName, runner: Runner) -> None:
    chunks: list[OutputChunk] = []
    result = runner(
        Command(["sh", "-c", "printf 'a\\nb'; printf 'c\\rd\\n\\ne'"], on_output=chunks.append, lines=True), backend
    )
    assert result.success
    assert [chunk.data for chunk in chunks] == [b"a\n", b"bc\rd\n", b"\n", b"e"]


def test_it_comes_while_the_program_runs(backend: BackendName, runner: Runner) -> None:
    """The program ends only once its first output is answered."""
    answers: list[bytes] = []

    def answer() -> Iterator[bytes]:
        yield b"x\n"
        while not answers:
            yield b""
        yield b"y\n"

    def take(chunk: OutputChunk) -> None:
        answers.append(chunk.data)

    result = runner(Command(["sh", "-c", "read x; echo $x; read y; echo $y"], stdin=answer(), on_output=take), backend)
    assert result.success
    assert b"".join(answers) == b"x\ny\n"


def test_much_output_and_the_limit(backend: BackendName, runner: Runner) -> None:
    size = [0]

    def count(chunk: OutputChunk) -> None:
        size[0] += len(chunk.data)

    result = runner(Command(["head", "-c", "3000000", "/dev/zero"], on_output=count), backend)
    assert (result.outcome, size[0]) == (Outcome.SUCCEEDED, 3_000_000)
    size[0] = 0
    result = runner(Command(["cat", "/dev/zero"], on_output=count, limits=Limits(output=300_000)), backend)
    assert (result.outcome, size[0]) == (Outcome.OUTPUT_EXCEEDED, 300_000)


def test_a_program_need_not_read_its_input(backend: BackendName, runner: Runner) -> None:
    endless = iter(lambda: b"x" * 10_000, None)
    result = runner(Command(["true"], stdin=endless), backend)
    assert result.success


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_callback_that_raises_in_the_manager_ends_all(backend: BackendName) -> None:
    def refuse(chunk: OutputChunk) -> None:
        raise ZeroDivisionError(chunk.data)

    manager = ProcessManager(1, backend=backend)
    with pytest.raises(ZeroDivisionError), manager:
        manager.queue_task(Command(["sh", "-c", "echo $$; exec sleep 1000"], on_output=refuse))
    assert [result.outcome for result in manager.task_results] == [Outcome.CANCELLED]


def test_a_callback_that_raises_elsewhere_is_logged(backend: BackendName, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(chunk: OutputChunk) -> None:
        raise ZeroDivisionError(chunk.data)

    result = by_executor(Command(["echo", "a"], on_output=refuse), backend)
    assert result.success
    assert "a callback for a program's streams raised" in caplog.text


@pytest.mark.parametrize("wrong", [{"stdin": "text"}, {"stdin": 5}, {"on_output": 5}])
def test_what_is_no_stream_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be"):
        Command(["true"], **wrong)


# --- asyncio -------------------------------------------------------------------------------------------------


def in_pool(backend: BackendName, main: Any, workers: int = 1) -> Any:
    async def with_pool() -> Any:
        async with SandboxPool(workers, backend=backend) as pool:
            return await main(pool)

    return asyncio.run(with_pool())


def test_stream_yields_lines(backend: BackendName) -> None:
    async def main(pool: SandboxPool) -> list[OutputChunk]:
        command = Command(["sh", "-c", "echo a; echo b >&2; exit 3"])
        found = []
        with pytest.raises(Exception, match="exit code 3"):
            async for chunk in pool.stream(command, lines=True):
                found.append(chunk)  # noqa: PERF401 - what came before it raises counts
        return found

    assert sorted(in_pool(backend, main)) == [("stderr", b"b\n"), ("stdout", b"a\n")]


def test_a_program_waits_for_a_slow_reader(backend: BackendName, tmp_path: Path) -> None:
    """It has written no more than the pipes hold, and what was taken, when another has written far more."""
    program = f"""
import os
count = os.open({str(tmp_path / "count")!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    os.write(1, bytes(8192))
    os.write(count, b".")
"""

    async def main(pool: SandboxPool) -> int:
        async with contextlib.aclosing(pool.stream(Command([sys.executable, "-c", program]))) as chunks:
            await anext(chunks)
            much = pool.stream(Command(["head", "-c", "20000000", "/dev/zero"]))
            assert sum([len(chunk.data) async for chunk in much]) == 20_000_000
            return (tmp_path / "count").stat().st_size

    assert in_pool(backend, main, workers=2) < 100


def test_leaving_a_stream_ends_the_program(backend: BackendName) -> None:
    async def main(pool: SandboxPool) -> int:
        endless = Command(["sh", "-c", "echo $$; while :; do echo; done"])
        async with contextlib.aclosing(pool.stream(endless, lines=True)) as chunks:
            watched = Watched(int((await anext(chunks)).data))
        with watched:
            assert not watched.living_after(0.01)
        return (await pool.run(Command(["true"]))).exit_code  # type: ignore[return-value]

    assert in_pool(backend, main) == 0


def test_a_limit_ends_a_program_whose_output_nobody_takes(backend: BackendName) -> None:
    async def main(pool: SandboxPool) -> None:
        limits = Limits(wall_seconds=0.3 * PACE)
        chunks = pool.stream(Command(["yes"], limits=limits))
        pid = await anext(chunks)
        assert pid.stream == "stdout"
        other = await pool.run(Command(["true"]))  # which has the slot once the limit is reached
        assert other.success
        with pytest.raises(TimeoutError):
            async for _ in chunks:
                pass

    in_pool(backend, main)


def test_nobody_gets_a_signal_for_a_pipe(backend: BackendName) -> None:
    handler = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        assert by_manager(Command(["sh", "-c", "exec 0<&-; sleep 0.1"], stdin=[bytes(1 << 20)]), backend).success
    finally:
        signal.signal(signal.SIGPIPE, handler)
    assert os.getpid()
