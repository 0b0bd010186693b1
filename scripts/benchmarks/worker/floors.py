"""The bare work that tools are compared with. It loads next to nothing: what is loaded is forked along.

A child of a bare interpreter pays 70 page faults. One of an interpreter that has imported ``threading`` pays 200, as
every fork then runs that module's Python code.
"""

import os
import resource
import time

TYPE_CHECKING = False  # the module typing would be forked along
if TYPE_CHECKING:
    from benchmarks.messages import Terms

Answer = dict[str, object]


class Account:
    """What a round takes, from here on: of this process, and of all descendants that it waits for."""

    def __init__(self) -> None:
        self._before, self._start = _used(), time.perf_counter()

    def seconds(self) -> float:
        """So far."""
        return time.perf_counter() - self._start

    def taken(self) -> Answer:
        """Seconds, seconds of CPU time, and page faults so far."""
        seconds = self.seconds()
        cpu, faults = _used()
        return {"seconds": seconds, "cpu": cpu - self._before[0], "faults": faults - self._before[1]}


def _used() -> tuple[float, int]:
    cpu, faults = 0.0, 0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        cpu += usage.ru_utime + usage.ru_stime
        faults += usage.ru_minflt
    return cpu, faults


def forks(tool: str, _terms: "Terms", *, count: int) -> Answer:
    """A pipe, os.fork, one byte back, waitpid. With the tool "fork with imports", after an import of gwsandbox."""
    if tool == "fork with imports":
        import gwsandbox  # noqa: F401
    account = Account()
    for _ in range(count):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, b"x")
            os._exit(0)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        os.waitpid(pid, 0)
    return account.taken()


def fork_execs(_tool: str, _terms: "Terms", *, argv: list[str], count: int) -> Answer:
    """os.fork, execv, waitpid."""
    account = Account()
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                os.execv(argv[0], argv)
            finally:
                os._exit(127)
        os.waitpid(pid, 0)
    return account.taken()


def fork_deadlines(_tool: str, terms: "Terms", *, starts: str, count: int) -> Answer:
    """Fork, wait for the pidfd until the deadline, kill, waitpid. The child writes its pid to ``starts`` and sleeps."""
    import select
    import signal

    from benchmarks.worker import loads

    start = time.perf_counter()
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            loads.report_and_sleep(starts, 60.0)
            os._exit(0)
        fd = os.pidfd_open(pid)
        if not select.select([fd], [], [], terms["wall"])[0]:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)
    return {"seconds": time.perf_counter() - start}


def piped_values(_tool: str, _terms: "Terms", *, size: int, count: int) -> Answer:
    """Fork, make ``size`` bytes, and read them through a pipe of 1 MiB into one buffer. All buffers are kept."""
    from benchmarks.worker import peaks

    before = peaks.start()
    start = time.perf_counter()
    kept = [_through_pipe(size) for _ in range(count)]
    seconds = time.perf_counter() - start
    whole = all(value[:1] == value[-1:] == b"x" for value in kept)
    return {"seconds": seconds, "peak": peaks.end() - before, "whole": whole}


def _through_pipe(size: int) -> bytearray:
    import fcntl

    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 1 << 20)
    pid = os.fork()
    if pid == 0:
        view = memoryview(b"x" * size)
        while view:
            view = view[os.write(writer, view) :]
        os._exit(0)
    os.close(writer)
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    while filled < size and (got := os.readv(reader, [view[filled:]])):
        filled += got
    os.close(reader)
    os.waitpid(pid, 0)
    return buffer
