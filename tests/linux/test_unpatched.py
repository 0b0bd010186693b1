"""A caller whose modules a library of greenlets has patched: our processes have the originals, tasks have what it had."""

from __future__ import annotations

import subprocess

import pytest
from support import BackendName, Program

# Patches as gevent does: what is patched says so when it is called, and where.
PATCHES = """
import os, select, socket, sys, time, types, warnings
warnings.simplefilter("ignore")
destroyed = []
def library(name):
    made = types.ModuleType(name)
    sys.modules[name] = made
    return made
gevent = library("gevent")
gevent.get_hub = lambda: types.SimpleNamespace(destroy=lambda destroy_loop: destroyed.append(os.getpid()))
caller, calls = os.getpid(), []
def patched(module, name):
    original = getattr(module, name)
    def replacement(*args, **kwargs):
        if os.getpid() != caller and not in_task:
            os.write(2, f"{module.__name__}.{name} is called by a process of ours\\n".encode())
        calls.append(name)
        return original(*args, **kwargs)
    replacement.__module__ = "gevent." + module.__name__
    setattr(module, name, replacement)
in_task = []
class Socket(socket.socket):
    __module__ = "gevent.socket"
    def recv(self, *args):
        raise RuntimeError("a greenlet's socket is used")
    recvmsg = recvmsg_into = sendmsg = send = recv
socket.socket = Socket
for module, names in {os: ("fork", "waitpid"), select: ("select",), time: ("sleep",), socket: ("socketpair",)}.items():
    for name in names:
        patched(module, name)
del select.epoll, select.poll
"""


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_our_processes_use_nothing_that_is_patched(backend: BackendName, start_method: str) -> None:
    source = f"""
{PATCHES}
from gwsandbox import Command, ProcessManager, Task
def task(number):
    in_task.append(1)
    return number
with ProcessManager(2, backend={backend!r}, start_method={start_method!r}) as manager:
    manager.queue_tasks(Task(abs, (-number,)) for number in range(5))
    manager.queue_task(Command(["echo", "said"]))
print(sorted(str(result.detail or result.result) for result in manager.task_results))
print("select" in calls, "fork" in calls, hasattr(select, "epoll"))
"""
    with Program(source, stderr=subprocess.STDOUT) as program:
        assert program.line() == str(sorted(["0", "1", "2", "3", "4", "CommandOutput(stdout=b'said\\n', stderr=b'')"]))
        assert program.line() == "True False False", "it waits as greenlets do, and does nothing else that is patched"
        assert program.wait() == 0


def test_a_task_finds_the_modules_as_the_caller_had_them_and_no_greenlets(backend: BackendName) -> None:
    source = f"""
{PATCHES}
from gwsandbox import run
def task():
    in_task.append(1)
    functions = (os.fork, select.select, time.sleep, socket.socket)
    return [function.__module__ for function in functions], hasattr(select, "epoll"), bool(destroyed)
print(run(task, backend={backend!r}).result)
"""
    with Program(source, stderr=subprocess.STDOUT) as program:
        names = ["gevent.os", "gevent.select", "gevent.time", "gevent.socket"]
        assert program.line() == str((names, False, True))


# --- the true ones ---------------------------------------------------------------------------------------

WORKS = """
import os, subprocess, threading, time
from gwsandbox import Limits, ProcessManager, Task
ticks = []
def tick():
    while True:
        ticks.append(os.getpid())
        time.sleep(0.01)
spawn(tick)
def sleeps():
    before = len(ticks)
    time.sleep(0.1)
    return len(ticks) - before
def threads():
    found = []
    thread = threading.Thread(target=lambda: (time.sleep(0.01), found.append(1)))
    thread.start()
    thread.join()
    return len(found)
def programs():
    return len(subprocess.run(["echo", "hello"], capture_output=True).stdout)
before = len(ticks)
with ProcessManager(1, backend=BACKEND, start_method=METHOD, limits=Limits(wall_seconds=60)) as manager:
    for task in (sleeps, threads, programs):
        manager.queue_task(Task(task))
print([result.result if result.success else result for result in manager.task_results], flush=True)
print(len(ticks) > before, {*ticks} == {os.getpid()}, flush=True)
os._exit(0)
"""
LIBRARIES = {
    "gevent": "from gevent import monkey, spawn; monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch(); spawn = eventlet.spawn",
}


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
@pytest.mark.parametrize(
    "library", [pytest.param("gevent", marks=pytest.mark.gevent), pytest.param("eventlet", marks=pytest.mark.eventlet)]
)
def test_a_caller_that_it_has_patched(backend: BackendName, library: str, start_method: str) -> None:
    works = WORKS.replace("BACKEND", repr(backend)).replace("METHOD", repr(start_method))
    with Program(f"{LIBRARIES[library]}\n{works}", stderr=subprocess.DEVNULL) as program:
        assert program.line() == "[0, 1, 6]"
        assert program.line() == "True True"


@pytest.mark.gevent
def test_a_greenlet_that_a_task_started_as_a_thread_is_waited_for(backend: BackendName) -> None:
    """As a script's interpreter does under gevent."""
    source = f"""
{LIBRARIES["gevent"]}
import os, threading, time
from gwsandbox import run
def task():
    threading.Thread(target=lambda: (time.sleep(0.01), os.write(1, b"left thread is done\\n"))).start()
print(run(task, backend={backend!r}).outcome.name, flush=True)
"""
    with Program(source, stderr=subprocess.DEVNULL) as program:
        assert program.line() == "left thread is done"
        assert program.line() == "SUCCEEDED"
