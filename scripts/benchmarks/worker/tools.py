"""The tools that are compared: how each runs Python calls, or a program, in fresh processes.

Imports are inside the functions, so that a side loads what it measures and nothing else. ModuleNotFoundError and
FileNotFoundError mean "not installed"; ``CannotRun`` says why a tool does not work here.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.messages import Terms
from benchmarks.worker import loads

if TYPE_CHECKING:
    from concurrent.futures import Future

    from gwsandbox import ProcessManager

_GIB = 1024**3
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class CannotRun(Exception):
    """A tool is there and does not work on this host; the text says why."""


# --- Python calls: each yields, per call, its value, or the exception that it ended with -----------------


StartMethod = Literal["fork", "forkserver"]


def gwsandbox(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    return _gwsandbox(calls, terms, "fork")


def gwsandbox_forkserver(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    return _gwsandbox(calls, terms, "forkserver")


def gwsandbox_preloaded(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    return _gwsandbox(calls, terms, "forkserver", (loads.__name__,))


def gwsandbox_executor(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    import gwsandbox as package

    limits = package.Limits(memory=terms["memory"], wall_seconds=terms["wall"], pids=terms["pids"])
    with package.SandboxExecutor(terms["workers"], limits=limits, backend=terms["backend"]) as executor:
        futures = deque(executor.submit(func, *arguments) for func, arguments in calls)
        while futures:
            yield _outcome(futures.popleft())


def gwsandbox_off(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    return _gwsandbox(calls, terms, "fork", hardening="off")


def gwsandbox_standard(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    return _gwsandbox(calls, terms, "fork", hardening="standard")


def gwsandbox_clean_off(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    return _gwsandbox(calls, terms, "forkserver", (loads.__name__,), hardening="off")


def gwsandbox_strict(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    return _gwsandbox(calls, terms, "forkserver", (loads.__name__,), hardening="strict")


def _gwsandbox(
    calls: Iterable[Call],
    terms: Terms,
    start_method: StartMethod,
    preload: tuple[str, ...] = (),
    hardening: str = "standard",
) -> Iterator[Any]:
    import gwsandbox as package

    with _manager(terms, start_method, preload, hardening) as manager:
        manager.queue_tasks(package.Task(func, arguments) for func, arguments in calls)
        for result in manager.as_completed():
            if result.outcome is package.Outcome.SANDBOX_ERROR:
                raise CannotRun(result.detail)
            yield result.exception or result.result


def _manager(
    terms: Terms, start_method: StartMethod = "fork", preload: tuple[str, ...] = (), hardening: str = "standard"
) -> "ProcessManager":
    import gwsandbox as package

    return package.ProcessManager(
        terms["workers"],
        limits=package.Limits(memory=terms["memory"], wall_seconds=terms["wall"], pids=terms["pids"]),
        hardening=getattr(package.Hardening, hardening)(),
        backend=terms["backend"],
        start_method=start_method,
        preload=preload,
    )


def glasswall(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    from glasswall.multiprocessing import GlasswallProcessManager, Task

    memory = None if terms["memory"] is None else terms["memory"] / _GIB
    with GlasswallProcessManager(terms["workers"], terms["wall"], memory) as manager:
        for func, arguments in calls:
            manager.queue_task(Task(func=func, args=arguments))
        for result in manager.as_completed():
            yield result.exception or result.result


def pebble(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    """A fresh process for each call: ``max_tasks=1``. It has no limit of memory."""
    from pebble import ProcessPool

    with ProcessPool(max_workers=terms["workers"], max_tasks=1) as pool:
        futures = deque(pool.schedule(func, args=arguments, timeout=terms["wall"]) for func, arguments in calls)
        while futures:
            yield _outcome(futures.popleft())


def _futures(calls: Iterable[Call], terms: Terms, start_method: str) -> Iterator[Any]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context(start_method)
    with ProcessPoolExecutor(terms["workers"], mp_context=context, max_tasks_per_child=1) as executor:
        futures = deque(executor.submit(func, *arguments) for func, arguments in calls)
        while futures:
            yield _outcome(futures.popleft())


def futures_spawn(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    return _futures(calls, terms, "spawn")


def futures_forkserver(calls: Iterable[Call], terms: Terms) -> Iterator[Any]:
    return _futures(calls, terms, "forkserver")


def _outcome(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001 - how a call ended is the finding
        return error


CALLERS: dict[str, Callable[[Iterable[Call], Terms], Iterator[Any]]] = {
    "gwsandbox": gwsandbox,
    "gwsandbox executor": gwsandbox_executor,
    "gwsandbox off": gwsandbox_off,
    "gwsandbox standard": gwsandbox_standard,
    "gwsandbox clean off": gwsandbox_clean_off,
    "gwsandbox strict": gwsandbox_strict,
    "gwsandbox forkserver": gwsandbox_forkserver,
    "gwsandbox preloaded": gwsandbox_preloaded,
    "glasswall": glasswall,
    "pebble": pebble,
    "futures spawn": futures_spawn,
    "futures forkserver": futures_forkserver,
}


# --- programs: each runs one program ``count`` times, one after the other ---------------------------------


def subprocess_run(argv: list[str], count: int, _terms: Terms) -> None:
    import subprocess

    for _ in range(count):
        subprocess.run(argv, check=True)


def gwsandbox_command(argv: list[str], count: int, terms: Terms) -> None:
    import gwsandbox as package

    with _manager(terms) as manager:
        manager.queue_tasks(package.Command(argv) for _ in range(count))
        for result in manager.as_completed():
            if not result.success:
                raise CannotRun(result.detail)


def _prefixed(*prefix: str) -> Callable[[list[str], int, Terms], None]:
    def run(argv: list[str], count: int, _terms: Terms) -> None:
        import shutil
        import subprocess

        if shutil.which(prefix[0]) is None:
            raise FileNotFoundError(prefix[0])
        for _ in range(count):
            done = subprocess.run([*prefix, *argv], capture_output=True, check=False)
            if done.returncode:
                raise CannotRun(done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}")

    return run


def _systemd_run(*options: str) -> Callable[[list[str], int, Terms], None]:
    def run(argv: list[str], count: int, terms: Terms) -> None:
        if not os.path.isdir("/run/systemd/system"):
            raise CannotRun("systemd does not run here")
        manager = ["--user"] if os.geteuid() else []
        memory = f"--property=MemoryMax={terms['memory'] or 'infinity'}"
        pids = f"--property=TasksMax={terms['pids'] or 'infinity'}"
        _prefixed("systemd-run", *manager, "--quiet", *options, memory, pids, "--")(argv, count, terms)

    return run


def benchexec(argv: list[str], count: int, terms: Terms) -> None:
    """Its Python interface, without containers."""
    import logging

    from benchexec.runexecutor import RunExecutor

    logging.disable(logging.WARNING)
    asked = {"memlimit": terms["memory"], "walltimelimit": terms["wall"]}
    limits = {name: value for name, value in asked.items() if value}
    try:
        executor = RunExecutor(use_namespaces=False)
        for _ in range(count):
            result = executor.execute_run(args=argv, output_filename=os.devnull, **limits)
            if result["exitcode"].value:
                raise CannotRun(f"exit code {result['exitcode'].value}")
    except SystemExit as error:  # it exits where it finds no cgroups that it can use
        raise CannotRun(str(error)) from error


BWRAP = ("bwrap", "--unshare-all", "--die-with-parent", *("--bind", "/", "/"), *("--dev", "/dev"), *("--proc", "/proc"))

COMMANDERS: dict[str, Callable[[list[str], int, Terms], None]] = {
    "subprocess.run": subprocess_run,
    "gwsandbox": gwsandbox_command,
    "bwrap": _prefixed(*BWRAP),
    "systemd-run --scope": _systemd_run("--scope"),
    "systemd-run --wait": _systemd_run("--wait", "--pipe"),
    "BenchExec": benchexec,
}
