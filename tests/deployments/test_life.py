"""What happens to a unit while its tasks run: frozen, stopped, its manager executed again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import SOURCES
from cli_support import HANG_AFTER

pytestmark = [pytest.mark.vm, pytest.mark.deployment, pytest.mark.cgroup2]

NAME = "gwsandboxtest-life.service"

# Says where its task is held, waits in it until its line is read, and says how the tasks ended.
LIVES = """
import sys
sys.path.insert(0, sys.argv[1])
from gwsandbox import Hardening, Limits, ProcessManager, SandboxError, Task
from gwsandbox.linux import procfs
said = open(sys.argv[2], "w")  # which guests do not have

def wait():
    with open(sys.argv[2], "w") as file:
        print(procfs.own_cgroup(), file=file)
    return open(sys.argv[3]).read()

with ProcessManager(1, limits=Limits(memory="64MiB"), hardening=Hardening.off(), backend="cgroup") as manager:
    manager.queue_task(Task(wait))
    manager.queue_task(Task(len, ("abc",)))
print(*(result.outcome.name for result in manager.task_results), file=said, flush=True)
"""


class Life:
    """The unit, the pipe on which it says things, and the one on which its task waits."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self._file = Path("/run/systemd/system", NAME)
        program, said, self._go = folder / "program", folder / "said", folder / "go"
        program.write_text(LIVES, encoding="utf-8")
        for path in (said, self._go):
            subprocess.run(["mkfifo", str(path)], check=True)
        command = f"{sys.executable} {program} {SOURCES} {said} {self._go}"
        self._file.write_text("\n".join(["[Service]", *lines, f"ExecStart={command}", ""]), encoding="utf-8")
        systemctl("daemon-reload")
        systemctl("start", NAME)
        self._said = said.open(encoding="utf-8")
        self.cgroup = self.line()

    def line(self) -> str:
        return self._said.readline().strip()

    def go(self) -> None:
        """Let the task end."""
        self._go.write_text("gone", encoding="utf-8")

    def remove(self) -> None:
        systemctl("thaw", NAME, check=False)
        systemctl("stop", NAME)
        self._said.close()
        self._file.unlink()
        systemctl("daemon-reload")


def systemctl(*words: str, check: bool = True) -> str:
    done = subprocess.run(
        ["systemctl", *words], check=check, capture_output=True, text=True, timeout=HANG_AFTER, stdin=subprocess.DEVNULL
    )
    return done.stdout.strip()


@pytest.fixture(params=["Delegate=yes", "Delegate=no"])
def life(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Life]:
    made = Life(tmp_path, request.param)
    yield made
    made.remove()
    assert not Path(f"/sys/fs/cgroup{made.cgroup}").exists()


def test_a_manager_that_is_executed_again(life: Life) -> None:
    systemctl("daemon-reexec")
    life.go()
    assert life.line() == "SUCCEEDED SUCCEEDED"


def test_units_that_are_read_again(life: Life) -> None:
    systemctl("daemon-reload")
    life.go()
    assert life.line() == "SUCCEEDED SUCCEEDED"


def test_a_unit_that_is_frozen_for_a_while(life: Life) -> None:
    systemctl("freeze", NAME)
    systemctl("thaw", NAME)
    life.go()
    assert life.line() == "SUCCEEDED SUCCEEDED"


def test_a_unit_that_is_stopped(life: Life) -> None:
    """Its tasks end with it, in a scope too: nobody is left to say how."""
    systemctl("stop", NAME)
    assert life.line() == ""


def test_a_unit_whose_limits_change(life: Life) -> None:
    systemctl("set-property", "--runtime", NAME, "MemoryMax=500M", "TasksMax=100")
    life.go()
    assert life.line() == "SUCCEEDED SUCCEEDED"


def test_a_unit_that_is_killed(life: Life) -> None:
    """Its main process alone: what ran for it is ended and its cgroups are removed all the same."""
    systemctl("kill", "--kill-whom=main", "--signal=KILL", NAME)
    assert life.line() == ""
