"""``gwsandbox map``: further attempts, the first failure, what is shown, and the lines at the end."""

from __future__ import annotations

import random
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from cli_support import Terminal, cli, environment, rows, running, wait_until
from support import BackendName, times
from test_cli_map import fill, summary, tree

MAP = ["map", "--backend", "rlimit", "--workers", "1"]
# Fails the first time, and succeeds the second.
SECOND = 'sh -c \'test -e "$1.seen" && exec cat "$1"; touch "$1.seen"; kill -SEGV $$\' sh {}'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    fill(tmp_path, in__a="a", in__b="b", in__c="c")
    return tmp_path


# --- further attempts --------------------------------------------------------------------------------------


def test_without_retries_a_failure_stands(place: Path) -> None:
    done = cli(*MAP, "--command", SECOND, "in/a", cwd=place)
    assert (done.returncode, summary(done.stderr)) == (1, "gwsandbox map: 1 crashed".replace("1 c", "0 succeeded, 1 c"))


def test_a_further_attempt_stands_and_the_earlier_ones_are_in_the_report(backend: BackendName, place: Path) -> None:
    words = ["map", "--backend", backend, "--retries", "2", "--report", "r", "--command", SECOND, "in/a", "in/b"]
    done = cli(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert summary(done.stderr) == "gwsandbox map: 2 succeeded, 2 further attempts"
    assert done.stderr.count("\n") == 1  # a failure that was made good is no news
    for row in rows(place / "r"):
        assert (row["outcome"], row["stdout"]) == ("SUCCEEDED", row["input"][-1])
        (earlier,) = row["attempts"]
        assert (earlier["outcome"], earlier["exit_code"]) == ("CRASHED", -11)
        assert "wall_seconds" in earlier["usage"]


def test_memory_and_time_grow_with_each_attempt(place: Path) -> None:
    grow = ["--retry-memory", "2x", "--retry-timeout", "1.5x"]
    words = [*MAP, "--retries", "2", *grow, "--memory", "64MiB", "--timeout", "20s", "--report", "r"]
    done = cli(*words, "--command", "sh -c 'kill -SEGV $$' sh {}", "in/a", cwd=place)
    assert summary(done.stderr) == "gwsandbox map: 0 succeeded, 1 crashed, 2 further attempts"
    (row,) = rows(place / "r")
    limits = [*(attempt["limits"] for attempt in row["attempts"]), row["limits"]]
    mib = 1 << 20
    assert [(each["memory"] // mib, each["wall_seconds"]) for each in limits] == [(64, 20), (128, 30), (256, 45)]
    assert (row["timeout_seconds"], row["memory_limit_in_gib"]) == (45, 0.25)


def test_more_memory_makes_it_good(place: Path) -> None:
    """The limit of the further attempt is the one that holds."""
    fill(place, **{"work.py": "def fill(path):\n    return len(bytearray(100 * 2**20))\n"})
    words = [*MAP, "--retries", "2", "--retry-memory", "4x", "--memory", "48MiB", "--report", "r", "work:fill", "in/a"]
    done = cli(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    (row,) = rows(place / "r")
    assert [attempt["outcome"] for attempt in row["attempts"]] == ["OUT_OF_MEMORY"]
    assert row["result"] == 100 << 20


@pytest.mark.parametrize(("on", "attempts"), [("CRASHED", 2), ("failed,crashed", 2), ("TIMED_OUT,OUT_OF_MEMORY", 1)])
def test_attempts_after_some_outcomes_alone(place: Path, on: str, attempts: int) -> None:
    words = [*MAP, "--retries", "1", "--retry-on", on, "--report", "r", "--command", "sh -c 'kill -SEGV $$' sh {}"]
    cli(*words, "in/a", cwd=place)
    assert len(rows(place / "r")[0].get("attempts", ())) == attempts - 1


def test_a_refusal_of_the_task_is_not_tried_again_by_itself(place: Path) -> None:
    done = cli(*MAP, "--retries", "3", "--command", "false {}", "in/a", cwd=place)
    assert summary(done.stderr) == "gwsandbox map: 0 succeeded, 1 failed"


def test_the_output_of_an_attempt_that_failed_is_not_kept(place: Path) -> None:
    template = 'sh -c \'echo x >>"$2"; test -e "$1.seen" || { touch "$1.seen"; kill -SEGV $$; }\' sh {} {output}'
    done = cli(*MAP, "--retries", "1", "--output-dir", "out", "--command", template, "in/a", cwd=place)
    assert (done.returncode, tree(place / "out")) == (0, {"a": "x\n"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--retry-memory", "2x"], "Invalid value for --retry-memory: needs --retries N"),
        (["--retry-on", "FAILED"], "Invalid value for --retry-on: needs --retries N"),
        (["--retries", "1", "--retry-memory", "half"], "'half' is no factor of 1 or more; write for example 2x"),
        (["--retries", "1", "--retry-timeout", "0.5x"], "'0.5x' is no factor of 1 or more"),
        (["--retries", "1", "--retry-on", "OOM"], "'OOM' is no outcome after which to try again; these are: CPU_TIME"),
        (["--retries", "-1"], "Invalid value for '--retries': -1"),
    ],
)
def test_options_of_further_attempts_that_cannot_be(place: Path, words: list[str], message: str) -> None:
    done = cli(*MAP, *words, "--command", "true {}", "in", cwd=place)
    assert done.returncode == 2
    assert message in done.stderr


# --- the first failure -------------------------------------------------------------------------------------


def test_fail_fast_ends_the_run_and_the_same_command_goes_on(place: Path) -> None:
    template = "sh -c 'case $1 in in/b) test -e good;; in/c) test -e good || sleep 60;; esac' sh {}"
    words = [*MAP, "--fail-fast", "--report", "r", "--command", template, "in"]
    done = cli(*words, cwd=place)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "FAILED in/b: exit code 1"
    assert lines[1] == "gwsandbox map: ended at the first failure, with 1 input not done (--fail-fast)"
    assert summary(done.stderr) == "gwsandbox map: 1 succeeded, 1 failed"
    assert [row["input"] for row in rows(place / "r")] == ["in/a", "in/b"]
    (place / "good").touch()
    done = cli(*words, "--retry-failed", cwd=place)
    assert (done.returncode, summary(done.stderr)) == (0, "gwsandbox map: 2 succeeded, 1 skipped")


def test_fail_fast_waits_for_further_attempts(place: Path) -> None:
    done = cli(*MAP, "--fail-fast", "--retries", "1", "--command", SECOND, "in/a", "in/b", cwd=place)
    assert (done.returncode, summary(done.stderr)) == (0, "gwsandbox map: 2 succeeded, 2 further attempts")


def test_going_on_is_the_default(place: Path) -> None:
    for words in ([], ["--keep-going"]):
        done = cli(*MAP, *words, "--command", "false {}", "in", cwd=place)
        assert summary(done.stderr) == "gwsandbox map: 0 succeeded, 3 failed"


# --- what came ---------------------------------------------------------------------------------------------


def test_outputs_in_the_order_of_the_inputs(place: Path) -> None:
    """The first ends last: it waits for the others."""
    template = "sh -c 'echo begin $1; while test $1 = in/a && ! test -e last; do sleep 0.02; done; echo end $1; test $1 != in/c || touch last' sh {}"
    words = ["map", "--backend", "rlimit", "--workers", "3", "--command", template, "in"]
    shown = cli(*words, "--keep-order", cwd=place).stdout
    assert shown.split() == [word for name in "abc" for word in ("begin", f"in/{name}", "end", f"in/{name}")]
    (place / "last").unlink()
    lines = cli(*words, "--show-output", cwd=place).stdout.splitlines()
    pairs = sorted(zip(lines[::2], lines[1::2], strict=True))
    assert pairs == [(f"begin in/{name}", f"end in/{name}") for name in "abc"]  # each in one piece


def test_what_was_kept_back_is_shown_at_the_end(place: Path) -> None:
    """--fail-fast ends the run before what comes first has ended."""
    template = "sh -c 'echo $1; case $1 in in/[ac]) sleep 60;; in/b) exit 1;; esac' sh {}"
    words = ["map", "--backend", "rlimit", "--workers", "2", "--keep-order", "--fail-fast", "--command", template, "in"]
    done = cli(*words, cwd=place)
    assert (done.returncode, done.stdout) == (1, "in/b\n")


def test_values_of_functions_are_shown(place: Path) -> None:
    fill(place, **{"work.py": "def give(path):\n    return {'path': path} if path != 'in/b' else None\n"})
    done = cli(*MAP, "--keep-order", "work:give", "in", cwd=place)
    assert done.stdout == '{"path": "in/a"}\n{"path": "in/c"}\n'


# --- the end -----------------------------------------------------------------------------------------------


def test_at_a_terminal_the_end_names_what_was_slow_and_failed_and_how_to_repeat_it(place: Path) -> None:
    fill(place, **{"in__\x1b[2J": "x"})
    template = "sh -c 'case $1 in in/b) exit 3;; esac' sh {}"
    with Terminal("map", "--backend", "rlimit", "--timeout", "60s", "--command", template, "in", cwd=place) as terminal:
        assert terminal.end() == 1
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", terminal.shown)
    lines = [line.strip() for line in shown.splitlines()]
    assert "\x1b[2J" not in terminal.shown
    assert len([line for line in lines if re.match(r"slowest +\d\.\d\d s ", line)]) == 1
    assert any(re.match(r"failed +\d\.\d\d s .* in/b \(FAILED\)", line) for line in lines)
    (again,) = [line.removeprefix("one alone: ") for line in lines if line.startswith("one alone: ")]
    assert again == "gwsandbox run --timeout 60 -- sh -c 'case $1 in in/b) exit 3;; esac' sh in/b"


def test_the_line_that_repeats_a_failure_does(place: Path) -> None:
    fill(place, **{"work.py": "def refuse(path, output):\n    raise ValueError(path)\n"})
    words = [*MAP, "--verbose", "--timeout", "50s", "--output-dir", "out", "work:refuse", "in"]
    (again,) = [line for line in cli(*words, cwd=place).stderr.splitlines() if line.startswith("one alone: ")]
    line = shlex.split(again.removeprefix("one alone: "))
    assert line == [
        "gwsandbox",
        "map",
        "--timeout",
        "50",
        "--fresh",
        "--output-dir",
        "out",
        "--",
        "work:refuse",
        "in/a",
    ]
    done = subprocess.run(line, cwd=place, env=environment(), capture_output=True, text=True, check=False)
    assert "FAILED in/a: the function raised: ValueError: in/a" in done.stderr


def test_where_there_is_no_terminal_the_summary_is_enough(place: Path) -> None:
    assert cli(*MAP, "--command", "true {}", "in", cwd=place).stderr.count("\n") == 1


def test_the_live_display_has_a_row_for_each_task(place: Path) -> None:
    template = "sh -c 'until test -e go; do sleep 0.02; done' sh {}"
    words = ["map", "--backend", "rlimit", "--workers", "2", "--timeout", "300s", "--memory", "1GiB"]
    with Terminal(*words, "--command", template, "in", cwd=place) as terminal:
        terminal.until("in/b")
        terminal.until("s of 300 s")
        terminal.until("KiB of 1 GiB")
        terminal.until("0/3")
        (place / "go").touch()
        assert terminal.end() == 0
    assert "3/3" in terminal.shown


def test_the_live_display_counts_failures_and_shows_names_escaped(place: Path) -> None:
    fill(place, **{"in__\x1b[31mred": "x"})
    template = "sh -c 'case $1 in in/[ab]) exit 1;; esac; until test -e go; do sleep 0.02; done' sh {}"
    with Terminal("map", "--backend", "rlimit", "--workers", "1", "--command", template, "in", cwd=place) as terminal:
        terminal.until(r"\x1b[31mred")
        (place / "go").touch()
        terminal.until("2 failed")
        assert terminal.end() == 1
    assert "\x1b[31mred" not in terminal.shown


# --- interrupted anywhere ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(times(3)))
def test_interrupted_at_a_point_of_chance_and_resumed_is_as_if_it_never_was(tmp_path: Path, seed: int) -> None:
    fill(tmp_path, **{f"in__{number:02}": f"text {number}\n" for number in range(24)})
    template = "sh -c 'test $1 != in/07 || exit 3; cp $1 $2; echo $1' sh {} {output}"
    words = [*MAP, "--output-dir", "out", "--report", "r", "--command", template, "in"]
    done_before = random.Random(seed).randrange(24)
    with running(*words, cwd=tmp_path) as command:
        wait_until(lambda: len(rows(tmp_path / "r")) >= done_before)
        command.send(signal.SIGINT)
        command.end()
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert tree(tmp_path / "out") == {f"{n:02}": f"text {n}\n" for n in range(24) if n != 7}
    found = {row["input"]: (row["outcome"], row.get("stdout")) for row in rows(tmp_path / "r")}
    assert len(rows(tmp_path / "r")) == 24
    whole = {f"in/{n:02}": ("SUCCEEDED", f"in/{n:02}\n") if n != 7 else ("FAILED", None) for n in range(24)}
    assert found == whole
