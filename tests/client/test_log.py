"""What is logged under the name gwsandbox."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from cli_support import CLI, environment
from support import run_task

from gwsandbox import Command, Limits, Task


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    return [(record.name, record.levelname, record.getMessage()) for record in caplog.records]


def test_how_tasks_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="gwsandbox")
    run_task("rlimit", Task(abs, (-3,)))
    run_task("rlimit", Task(int, ("\x1b[2J",)))
    (good, bad) = records(caplog)
    assert good == ("gwsandbox", "DEBUG", "SUCCEEDED abs -3")
    assert bad[:2] == ("gwsandbox", "INFO")
    assert bad[2].startswith(r"FAILED int '\x1b[2J': the function raised: ValueError: invalid literal")


def test_a_program_that_fails_is_logged_with_the_line_that_repeats_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gwsandbox")
    limits = Limits(wall_seconds="1m", memory="64MiB", file_size=0)
    run_task("rlimit", Command(["sh", "-c", "pwd; exit 3"], cwd="/", limits=limits))
    ((_, _, text),) = records(caplog)
    line = "cd / && gwsandbox run --memory 67108864 --timeout 60 -- sh -c 'pwd; exit 3'"
    assert text == f"FAILED sh -c 'pwd; exit 3': exit code 3; to repeat it: {line}"
    repeated = line.replace("gwsandbox run", f"{shlex.join(CLI)} run --backend rlimit")
    done = subprocess.run(["sh", "-c", repeated], capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stdout) == (3, "/\n")


def test_nothing_imports_logging_and_nothing_is_printed() -> None:
    source = "import sys, gwsandbox; gwsandbox.run(int, ('x',), backend='rlimit'); print('logging' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, env=environment(), check=False
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
