"""``gwsandbox run``: exit codes, what passes through, the terminal, signals, reports, bad input."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import termios
from dataclasses import fields
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from cli_support import CLI, Running, Terminal, cli, environment, running, wait_until
from features import missing
from support import BackendName, Watched, is_running

from gwsandbox import Enforcement, TaskResult, Usage, __version__

FOR_EVER = "while :; do echo more; done"


def run(backend: BackendName, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return cli("run", "--backend", backend, *words, **options)


def python(source: str) -> list[str]:
    return [sys.executable, "-S", "-c", source]


# --- exit codes ------------------------------------------------------------------------------------------


def test_success_says_nothing(backend: BackendName) -> None:
    done = run(backend, "--", "echo", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


@pytest.mark.parametrize("code", [1, 7, 124, 255])
def test_the_programs_own_exit_code_is_passed_on_in_silence(backend: BackendName, code: int) -> None:
    done = run(backend, "--memory", "64MiB", "--timeout", "20s", "--", "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_timed_out(backend: BackendName, tmp_path: Path) -> None:
    done = run(backend, "--memory", "64MiB", "--timeout", "2s", "--report", "r.json", "--", "sleep", "60", cwd=tmp_path)
    assert done.returncode == 124
    assert done.stderr == (
        "gwsandbox: wall-clock limit of 2 s reached; raise --timeout (wall_seconds) if the work needs longer\n"
    )
    assert json.loads((tmp_path / "r.json").read_text())["outcome"] == "TIMED_OUT"


@pytest.mark.cgroup2
def test_out_of_memory(tmp_path: Path) -> None:
    words = ["--memory", "64MiB", "--timeout", "2s", "--report", "r.json"]
    done = run("cgroup", *words, "--", "python3", "-c", "x=bytearray(10**9)", cwd=tmp_path)
    assert done.returncode == 123, done.stderr
    assert done.stderr.startswith("gwsandbox: memory limit of 64 MiB reached; raise --memory")
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["outcome"], report["out_of_memory"], report["exit_code"]) == ("OUT_OF_MEMORY", True, -9)
    assert report["usage"]["sources"]["memory_peak_bytes"] == "memory.peak"


def test_out_of_memory_as_sampled() -> None:
    done = run("rlimit", "--memory", "64MiB", "--timeout", "60s", "--", *python("x=bytearray(10**9)"))
    assert done.returncode == 123, done.stderr
    assert done.stderr.startswith("gwsandbox: memory limit of 64 MiB reached; raise --memory")


def test_the_program_is_refused_more_than_it_could_ever_use() -> None:
    """Not an end by us: the program sees its allocation fail, and chooses its exit code."""
    done = run("rlimit", "--memory", "64MiB", "--", *python("x=bytearray(10**13)"))
    assert done.returncode == 1
    assert "MemoryError" in done.stderr


def test_cpu_time_exceeded(backend: BackendName) -> None:
    done = run(backend, "--cpu-time", "200ms", "--timeout", "60s", "--", "sh", "-c", "while :; do :; done")
    assert done.returncode == 122
    assert done.stderr.startswith("gwsandbox: CPU-time limit of 0.2 s used up; raise --cpu-time")


def test_output_exceeded(backend: BackendName) -> None:
    done = run(backend, "--output-limit", "1000", "--timeout", "60s", "--", "sh", "-c", FOR_EVER)
    assert done.returncode == 121
    assert done.stdout == "more\n" * 200
    assert done.stderr.startswith("gwsandbox: more than 1000 B written to stdout and stderr; raise --output-limit")


def test_not_found(backend: BackendName) -> None:
    done = run(backend, "--memory", "64MiB", "--timeout", "2s", "--", "/nonexistent")
    assert (done.returncode, done.stderr) == (127, "gwsandbox: /nonexistent: not found\n")


def test_not_found_in_path(backend: BackendName) -> None:
    done = run(backend, "--", "no-such-program")
    assert (done.returncode, done.stderr) == (127, "gwsandbox: no-such-program: not found in any folder of PATH\n")


def test_interpreter_not_found(backend: BackendName, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done = run(backend, "--", str(script))
    assert done.returncode == 127
    assert "the interpreter that its first line names" in done.stderr


def test_not_executable(backend: BackendName, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    done = run(backend, "--", "./data", cwd=tmp_path)
    assert done.returncode == 126
    assert done.stderr == (
        "gwsandbox: ./data: cannot be executed: Permission denied; check that it is a program and may be executed\n"
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGUSR1"])
def test_killed_by_a_signal_from_outside(backend: BackendName, name: str) -> None:
    number = getattr(signal, name)
    done = run(backend, "--", "sh", "-c", f"kill -{number} $$")
    assert done.returncode == 128 + number
    assert done.stderr == f"gwsandbox: ended by {name}, sent by itself or from outside and not by gwsandbox\n"


def test_crash(backend: BackendName) -> None:
    done = run(backend, "--", "sh", "-c", f"kill -{signal.SIGSEGV} $$")
    assert (done.returncode, done.stderr) == (128 + signal.SIGSEGV, "gwsandbox: crashed with SIGSEGV\n")


def test_a_closed_pipe_is_no_news(backend: BackendName) -> None:
    """As under a shell: ``yes | head`` says nothing of the signal that ends yes."""
    line = " ".join([*CLI, "run", "--no-limits", "--backend", backend, "--", "yes"])
    done = subprocess.run(
        ["bash", "-c", f"{line} | head -n 1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGPIPE, "y\n", "")


# --- what passes through ---------------------------------------------------------------------------------


def test_standard_streams_pass_through(backend: BackendName) -> None:
    done = run(backend, "--timeout", "60s", "--", "sh", "-c", "cat; echo told >&2", input="from the caller")
    assert (done.returncode, done.stdout, done.stderr) == (0, "from the caller", "told\n")


def test_standard_streams_pass_through_under_an_output_limit(backend: BackendName) -> None:
    done = run(backend, "--output-limit", "1MiB", "--", "sh", "-c", "cat; echo told >&2", input="x" * 200_000)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x" * 200_000, "told\n")


def test_folder_environment_and_descriptors_pass_through(backend: BackendName, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe:
        done = run(
            backend,
            "--",
            *python(f"import os; print(os.getcwd(), os.environ['COLOUR']); os.write({writer}, b'through')"),
            cwd=tmp_path,
            env=environment(COLOUR="blue"),
            pass_fds=[writer],
        )
        os.close(writer)
        assert pipe.read() == b"through"
    assert done.stdout == f"{tmp_path} blue\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--memory", "64MiB", "--", "echo", "--memory", "--timeout", "x", "--", "-h"],
        ["--memory", "64MiB", "echo", "--memory", "--timeout", "x", "--", "-h"],
    ],
    ids=["after --", "after the first word that is no option"],
)
def test_what_follows_the_program_is_the_programs(backend: BackendName, words: list[str]) -> None:
    done = run(backend, *words)
    assert (done.returncode, done.stdout) == (0, "--memory --timeout x -- -h\n")


def test_only_the_first_dashes_are_ours(backend: BackendName) -> None:
    assert run(backend, "--", "echo", "--").stdout == "--\n"


def test_imports_nothing_that_it_does_not_need(backend: BackendName) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            *CLI[1:],
            "run",
            "--no-limits",
            "--backend",
            backend,
            "--timeout",
            "60s",
            "true",
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "gwsandbox.cli.run" in imported
    unneeded = {"psutil", "rich", "cloudpickle", "json", "tempfile", "multiprocessing", "asyncio"}
    unneeded |= {f"gwsandbox.cli.{name}" for name in ("map", "doctor", "clean", "serve", "report_file")}
    unneeded |= {"logging", "inotify_simple", "gwsandbox.service", "gwsandbox.importer"}
    assert not imported & unneeded


# --- the terminal ----------------------------------------------------------------------------------------


def test_the_program_keeps_terminal_session_and_process_group(backend: BackendName) -> None:
    source = (
        "import os; print(os.isatty(0) and os.isatty(1) and os.isatty(2), os.getsid(0), os.getpgrp(),"
        " os.tcgetpgrp(0), 'end')"
    )
    with Terminal("run", "--backend", backend, "--timeout", "60s", "--", *python(source)) as terminal:
        terminal.until("end")
        assert terminal.end() == 0
        pid = terminal.process.pid  # leads the session and the process group
        assert terminal.shown.split()[:4] == ["True", str(pid), str(pid), str(pid)]


def test_ctrl_c_at_the_terminal_ends_the_program(backend: BackendName) -> None:
    # exec: a dash that is just forking loses the signal.
    with Terminal(
        "run", "--backend", backend, "--timeout", "60s", "--", "sh", "-c", "echo on; exec sleep 60"
    ) as terminal:
        terminal.until("on")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "gwsandbox" not in terminal.shown  # whoever typed it knows
        assert "Traceback" not in terminal.shown


def test_ctrl_c_at_the_terminal_is_the_programs_to_answer(backend: BackendName) -> None:
    script = "trap 'echo caught; exit 9' INT; echo on; while :; do sleep 0.01; done"
    with Terminal("run", "--backend", backend, "--timeout", "60s", "--", "sh", "-c", script) as terminal:
        terminal.until("on")
        terminal.type("\x03")
        terminal.until("caught")
        assert terminal.end() == 9


def test_ctrl_c_at_the_terminal_reaches_the_program_once(backend: BackendName) -> None:
    """The CLI gets it too, and does not pass it on: what it does pass on comes in order."""
    source = (
        "import signal; caught = []; signal.signal(2, lambda *_: (caught.append(2), print('caught', flush=True)));"
        " signal.signal(10, lambda *_: exit(len(caught))); print('on', flush=True)\nwhile True: signal.pause()"
    )
    with Terminal("run", "--backend", backend, "--", *python(source)) as terminal:
        terminal.until("on")
        terminal.type("\x03")
        terminal.until("caught")
        terminal.process.send_signal(signal.SIGUSR1)
        assert terminal.end() == 1


def test_a_limit_holds_at_the_terminal(backend: BackendName) -> None:
    with Terminal("run", "--backend", backend, "--timeout", "300ms", "--", "sleep", "60") as terminal:
        assert terminal.end() == 124
        assert "gwsandbox: wall-clock limit of 0.3 s reached" in terminal.shown


def modes(terminal: Terminal) -> tuple[bool, bool]:
    """Whether it echoes, and whether it edits lines."""
    local = terminal.modes()[3]
    return bool(local & termios.ECHO), bool(local & termios.ICANON)


@pytest.mark.parametrize("ending", ["deadline", "SIGKILL", "SIGTERM to the CLI", "ignored SIGTERM to the CLI"])
def test_the_terminals_modes_are_restored_after_a_kill(backend: BackendName, ending: str) -> None:
    ignore = "trap '' TERM; " if ending.startswith("ignored") else ""
    script = f"{ignore}stty -echo -icanon; echo $$ changed; exec sleep 60"
    limit = ["--timeout", "1s"] if ending == "deadline" else []
    with Terminal("run", "--backend", backend, *limit, "--grace", "100ms", "--", "sh", "-c", script) as terminal:
        terminal.until("changed")
        assert modes(terminal) == (False, False)
        if ending == "SIGKILL":
            os.kill(int(terminal.shown.split()[0]), signal.SIGKILL)
        elif "CLI" in ending:
            terminal.process.terminate()
        terminal.end()
        assert modes(terminal) == (True, True)


def test_modes_that_a_program_leaves_by_itself_stay(backend: BackendName) -> None:
    with Terminal("run", "--backend", backend, "--", "stty", "-echo") as terminal:
        assert terminal.end() == 0
        assert modes(terminal) == (False, True)


def test_the_terminals_foreground_is_taken_back_after_a_kill(backend: BackendName) -> None:
    """From a program with a process group of its own, such as a shell; else what comes next is stopped."""
    source = (
        "import os, signal; os.setpgid(0, 0); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU]);"
        " os.tcsetpgrp(0, os.getpid()); os.kill(os.getpid(), 9)"
    )
    inner = shlex.join([*CLI, "run", "--no-limits", "--backend", backend, "--", *python(source)])
    with Terminal("run", "--backend", "rlimit", "--", "sh", "-c", f"{inner}; stty echo && echo fine") as terminal:
        terminal.until("fine")
        assert terminal.end() == 0


# --- signals ---------------------------------------------------------------------------------------------


# In a loop of short sleeps: a shell loses a signal that comes as it forks.
CLEANS_UP = "trap 'echo cleaned; exit 3' INT QUIT TERM HUP USR1; echo on; while :; do sleep 0.02; done"


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_the_cli_alone_reaches_the_program(backend: BackendName, name: str) -> None:
    with running("run", "--backend", backend, "--", "sh", "-c", CLEANS_UP) as command:
        assert command.line() == "on"
        command.send(getattr(signal, name))
        assert command.end()[:2] == (3, "cleaned\n")


def test_a_signal_reaches_the_programs_process_group(backend: BackendName) -> None:
    """As under timeout(1), and with a terminal: a shell would wait for the program that it runs."""
    source = (
        "import signal, subprocess; signal.signal(signal.SIGTERM, lambda *_: None);"
        " child = subprocess.Popen(['sleep', '60']); far = subprocess.Popen(['sleep', '60'], process_group=0);"
        " print('on', flush=True); print(child.wait(), far.poll())"
    )
    with running("run", "--backend", backend, "--", *python(source)) as command:
        assert command.line() == "on"
        command.send(signal.SIGTERM)
        assert command.end() == (0, "-15 None\n", "")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_program_that_ends_by_that_signal(backend: BackendName, name: str) -> None:
    number = getattr(signal, name)
    with running("run", "--backend", backend, "--", "sh", "-c", "echo on; exec sleep 60") as command:
        assert command.line() == "on"
        command.send(number)
        assert command.end() == (128 + number, "", f"gwsandbox: ended by {name}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_ignores_that_signal_is_killed(backend: BackendName, number: signal.Signals) -> None:
    script = "trap '' TERM HUP; sleep 60 & echo $$ $!; wait"
    with (
        running("run", "--backend", backend, "--grace", "100ms", "--", "sh", "-c", script) as command,
        Watched(*map(int, command.line().split())) as program,
    ):
        command.send(number)
        code, _, stderr = command.end()
        assert (code, stderr) == (128 + number, f"gwsandbox: ended by {number.name}; the program was killed\n")
        assert not any(map(is_running, program.pids))


def test_a_program_may_go_on_after_sigint(backend: BackendName) -> None:
    """As an interpreter at its prompt does."""
    script = "trap 'echo caught' INT; echo on; while :; do read answer && exit $answer; done"
    with running("run", "--backend", backend, "--grace", "1ms", "--", "sh", "-c", script) as command:
        assert command.line() == "on"
        command.send(signal.SIGINT)
        assert command.line() == "caught"
        assert command.process.stdin is not None
        command.process.stdin.write("5\n")
        command.process.stdin.flush()
        assert command.end() == (5, "", "")


def test_a_deadline_with_grace(backend: BackendName) -> None:
    """SIGTERM first; whatever the program says then, it timed out."""
    words = ["--timeout", "300ms", "--grace", "60s", "--", "sh", "-c", CLEANS_UP.replace("exit 3", "exit 0")]
    done = run(backend, *words)
    assert (done.returncode, done.stdout) == (124, "on\ncleaned\n")
    assert done.stderr.endswith(
        "gwsandbox: wall-clock limit of 0.3 s reached; raise --timeout (wall_seconds) if the work needs longer\n"
    )


def test_a_deadline_with_grace_and_a_program_that_ignores_it(backend: BackendName, tmp_path: Path) -> None:
    words = [
        "--timeout",
        "200ms",
        "--grace",
        "200ms",
        "--report",
        "r",
        "--",
        "sh",
        "-c",
        "trap '' TERM; sleep 60; wait",
    ]
    assert run(backend, *words, cwd=tmp_path).returncode == 124
    report = json.loads((tmp_path / "r").read_text())
    assert (report["outcome"], report["exit_code"]) == ("TIMED_OUT", -9)
    assert report["elapsed_time"] >= 0.4


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM"])
def test_what_the_caller_ignores_stays_ignored(backend: BackendName, name: str) -> None:
    """As nohup, and a script's background jobs, rely on."""
    program = f"kill -{name} $$; echo on; read answer; echo survived"
    line = shlex.join([*CLI, "run", "--no-limits", "--backend", backend, "--", "sh", "-c", program])
    shell = ["sh", "-c", f"trap '' {name}; exec {line}"]
    with subprocess.Popen(shell, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment()) as process:
        command = Running(process)
        assert command.line() == "on"
        command.send(getattr(signal, f"SIG{name}"))
        assert process.stdin is not None
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert command.end() == (0, "survived\n", "")


def test_the_program_can_be_interrupted(backend: BackendName) -> None:
    """Though its caller passes the signal by: the program has it as it would without us."""
    done = run(backend, "--", "sh", "-c", "kill -INT $$; echo survived")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# --- the report ------------------------------------------------------------------------------------------


def test_report_has_the_fields_of_a_result(backend: BackendName, tmp_path: Path) -> None:
    words = ["--memory", "1GiB", "--timeout", "60s", "--report", "r.json", "--", "sh", "-c", "exit 3"]
    done = run(backend, *words, cwd=tmp_path)
    assert done.returncode == 3
    report = json.loads((tmp_path / "r.json").read_text())
    of_result = [field.name for field in fields(TaskResult) if field.name != "result"]
    assert list(report) == [*of_result, "limits", "folder", "repeat", "report"]
    assert (report["limits"], report["folder"]) == ({"memory": 1 << 30, "wall_seconds": 60.0}, str(tmp_path))
    again = ["gwsandbox", "run", "--memory", str(1 << 30), "--timeout", "60", "--", "sh", "-c", "exit 3"]
    assert report["repeat"] == again
    assert list(report["usage"]) == [field.name for field in fields(Usage)]
    assert list(report["enforcement"]) == [field.name for field in fields(Enforcement)]
    assert report["task"] == ["sh", "-c", "exit 3"]
    assert (report["outcome"], report["success"], report["exit_code"]) == ("FAILED", False, 3)
    assert report["exception"] == {"type": "gwsandbox.model.errors.GuestFailed", "message": "exit code 3"}
    assert (report["timeout_seconds"], report["memory_limit_in_gib"]) == (60.0, 1.0)
    assert report["enforcement"]["backend"] == backend
    assert report["enforcement"]["limits"]["memory"].startswith("memory.max" if backend == "cgroup" else "RLIMIT")


def test_report_of_success(backend: BackendName, tmp_path: Path) -> None:
    run(backend, "--report", "r.json", "--", "true", cwd=tmp_path)
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["outcome"], report["success"], report["exception"]) == ("SUCCEEDED", True, None)
    assert report["start_time"] < report["end_time"]
    assert report["usage"]["wall_seconds"] == report["elapsed_time"] > 0


def test_report_replaces_the_old_one_whole(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    report.write_text("old " * 10_000)
    link = tmp_path / "link.json"
    link.symlink_to("r.json")
    run("rlimit", "--report", "link.json", "--", "true", cwd=tmp_path)
    assert json.loads(report.read_text())["outcome"] == "SUCCEEDED"
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link.json", "r.json"]


def test_report_into_what_is_no_file_is_written_and_not_replaced() -> None:
    done = run("rlimit", "--report", "/dev/stderr", "--", "true")
    assert json.loads(done.stderr)["outcome"] == "SUCCEEDED"


@pytest.mark.parametrize("place", ["no/such/folder/r.json", ".", "data/r.json"])
def test_unwritable_report_is_an_error_before_anything_starts(tmp_path: Path, place: str) -> None:
    (tmp_path / "data").write_text("a file")
    done = run("rlimit", "--report", place, "--", "touch", "started", cwd=tmp_path)
    assert done.returncode == 125
    assert done.stderr.startswith(f"gwsandbox: the report {place} cannot be written: ")
    assert done.stderr.endswith("choose another place by --report\n")
    assert os.listdir(tmp_path) == ["data"]


# --- bad input, and what is said of what cannot be held --------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("--memory", "12x", "write for example 512MiB"),
        ("--memory", "-1", "write for example 512MiB"),
        ("--memory", "nan", "write for example 512MiB"),
        ("--memory", "99999999999GiB", "more than any machine has"),
        ("--memory", "1", "'1' is 1 B, which is too little for any program; write for example 512MiB"),
        ("--memory", "512", "which is too little for any program"),
        ("--swap", "some", "write for example 512MiB"),
        ("--timeout", "1h30", "write for example 5s"),
        ("--grace", "soon", "write for example 5s"),
        ("--cpus", "50%%", "write for example 0.5 or 50%"),
        ("--timeout", "soon", "write for example 5s"),
        ("--timeout", "-5s", "write for example 5s"),
        ("--timeout", "inf", "write for example 5s"),
        ("--timeout", "99999999h", "more than 31 years"),
        ("--cpu-time", "1y", "write for example 5s"),
        ("--cpus", "half", "write for example 0.5"),
        ("--cpus", "nan", "positive number"),
        ("--cpus", "-1", "positive number"),
        ("--cpus", "0.0001", "less than the kernel can give"),
        ("--pids", "1.5", "write for example 64"),
        ("--pids", "-1", "positive number"),
        ("--open-files", "many", "write for example 256"),
        ("--file-size", "1 MB of it", "write for example 512MiB"),
        ("--output-limit", "", "write for example 512MiB"),
        ("--backend", "magic", "cgroup"),
    ],
)
def test_bad_values_are_usage_errors(tmp_path: Path, option: str, value: str, remedy: str) -> None:
    done = cli("run", option, value, "--", "touch", "started", cwd=tmp_path)
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"Error: Invalid value for '{option}': ")
    assert remedy in message
    assert repr(value) in message
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument"),
        (["--", ""], "argv must name a program"),
        (["--mem", "1G", "true"], "No such option: --mem"),
    ],
)
def test_bad_calls_are_usage_errors(words: list[str], message: str) -> None:
    done = cli("run", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "gwsandbox run -h" in done.stderr


def test_zero_is_no_limit(backend: BackendName) -> None:
    words = [word for option in ("memory", "timeout", "cpus", "pids", "cpu-time") for word in (f"--{option}", "0")]
    assert run(backend, *words, "--", "true").returncode == 0


@pytest.mark.skipif(not missing("cgroup2"), reason="this machine has cgroup v2")
def test_without_cgroups_it_says_so(tmp_path: Path) -> None:
    done = cli("run", "--memory", "64MiB", "--", "true")
    assert done.returncode == 0
    assert done.stderr.startswith("gwsandbox: warning: no cgroup v2 here")
    assert done.stderr.count("\n") == 1
    assert cli("run", "--", "true").stderr == ""  # nothing was asked that could be lost

    done = run("cgroup", "--", "touch", "started", cwd=tmp_path)
    assert done.returncode == 125
    assert done.stderr.startswith("gwsandbox: find delegated root: ")
    assert done.stderr.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_what_is_not_held_is_said() -> None:
    done = run("rlimit", "--cpus", "0.5", "--timeout", "60s", "--", "true")
    assert done.returncode == 0
    assert done.stderr == (
        "gwsandbox: warning: cpus was not limited: a share of CPUs needs the cpu controller of cgroup v2\n"
    )


def test_version_and_help() -> None:
    assert cli("--version").stdout == f"gwsandbox {__version__}\n"
    shown = cli("run", "--help").stdout
    options = ["memory", "timeout", "cpu-time", "cpus", "pids", "open-files", "file-size", "output-limit"]
    assert all(f"--{option} " in shown for option in [*options, "backend", "report"])


@pytest.mark.skipif(not missing("cgroup2"), reason="this machine has cgroup v2")
def test_a_limit_that_is_held_fully_is_no_reason_to_warn() -> None:
    """And what is held less than fully is named by its option; the advice is for a command line."""
    assert cli("run", "--timeout", "60s", "--open-files", "256", "--", "true").stderr == ""
    stderr = cli("run", "--timeout", "60s", "--cpus", "50%", "--", "true").stderr
    assert stderr.startswith("gwsandbox: warning: no cgroup v2 here, ")
    assert "--cpus: a share of CPUs needs" in stderr
    assert "`gwsandbox doctor` says why" in stderr
    assert "backend=" not in stderr + cli("run", "--backend", "cgroup", "--", "true").stderr


def test_closed_streams_stay_closed_for_the_program_and_hold_no_report(backend: BackendName, tmp_path: Path) -> None:
    line = shlex.join(
        [*CLI, "run", "--no-limits", "--backend", backend, "--report", "r", "--", "sh", "-c", "echo out; echo err >&2"]
    )
    done = subprocess.run(
        ["sh", "-c", f"{line} 2>&-"], cwd=tmp_path, capture_output=True, text=True, env=environment(), check=False
    )
    assert (done.stdout, done.stderr) == ("out\n", "")
    assert json.loads((tmp_path / "r").read_text())["exit_code"] == done.returncode > 0


@pytest.mark.parametrize("words", [["--version"], ["run", "--", "echo", __version__]])
def test_nothing_is_lost_in_a_full_pipe_that_does_not_block(words: list[str]) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    os.write(writer, bytes(4096))
    with subprocess.Popen([*CLI, *words], stdout=writer, env=environment()) as process, open(reader, "rb") as pipe:
        wait_until(lambda: os.get_blocking(writer) or process.poll() is not None)
        os.close(writer)
        written = pipe.read()
    assert process.returncode == 0
    assert written.strip(b"\0\n").endswith(__version__.encode())


# Without the mark the signal reaches the caller's process group, these tests included.
@pytest.mark.parametrize("end", ["", pytest.param("os.kill(0, 9)", marks=pytest.mark.landlock_scopes)])
def test_streams_block_again_that_the_program_shared(backend: BackendName, end: str) -> None:
    reader, writer = os.pipe()
    try:
        source = f"import os; os.set_blocking(1, False); os.write(1, str(os.get_blocking(1)).encode()); {end}"
        run(backend, "--", *python(source), capture_output=False, stdout=writer)
        assert os.read(reader, 16) == b"False"
        assert os.get_blocking(writer)
    finally:
        os.close(reader)
        os.close(writer)


def test_usage_errors_go_nowhere_where_stderr_is_closed() -> None:
    line = shlex.join([*CLI, "run", "--no-such-option"])
    done = subprocess.run(["sh", "-c", f"{line} 2>&-"], capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_without_its_packages_the_command_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('none', name='typer')\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = cli("--version", env=environment(PYTHONPATH=paths))
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "gwsandbox: the command line needs the package typer; pip install 'gwsandbox[cli]'\n"
