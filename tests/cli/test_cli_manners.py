"""The manners of every command: help, suggestions, the version, completion, and how much is said."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import CLI, Terminal, cli, environment

from gwsandbox import __version__
from gwsandbox.cli.app import COMMANDS
from gwsandbox.service.config.config import FolderConfig, MetricsConfig, ServiceConfig, WorkerConfig

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


# --- help ------------------------------------------------------------------------------------------------


def test_the_help_of_the_program_has_every_command_under_a_title() -> None:
    done = cli("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE), name
    assert re.search(r"^Work:$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples(name: str) -> None:
    done = cli(name, "--help")
    assert done.returncode == 0
    assert re.search(r"^Examples:\n  .*gwsandbox ", done.stdout, re.MULTILINE), done.stdout
    assert max(map(len, done.stdout.partition("Examples:")[0].splitlines())) <= 100


def test_limits_have_a_title_of_their_own() -> None:
    for name in ("run", "map"):
        limits = cli(name, "--help").stdout.partition("\nLimits:\n")[2].partition("\n\n")[0]
        assert all(option in limits for option in ("--memory", "--timeout", "--profile", "--backend", "--grace"))
        assert "--report" not in limits


def test_without_words_the_help_is_shown() -> None:
    assert "Usage: gwsandbox" in cli().stderr + cli().stdout
    assert cli("--version").stdout == f"gwsandbox {__version__}\n"


# --- what is mistyped ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run", "--memroy", "1"], "No such option: --memroy. Did you mean '--memory'"),
        (["map", "--tiemout", "1"], "No such option: --tiemout. Did you mean '--timeout'"),
        (["--versoin"], "No such option: --versoin. Did you mean '--version'"),
        (["false"], "No such command 'false'. To run this program: gwsandbox run -- false"),
        (["no-such-thing"], "No such command 'no-such-thing'.\n"),
        (["run", "--quiet", "--verbose", "--", "true"], "give --quiet or --verbose, not both"),
    ],
)
def test_suggestions(words: list[str], message: str) -> None:
    done = cli(*words)
    assert done.returncode == 2
    assert message in done.stderr


# --- how much is said ------------------------------------------------------------------------------------


def test_quiet_says_only_why_gwsandbox_fails(tmp_path: Path) -> None:
    done = cli("run", "--quiet", "--timeout", "50ms", "--cpus", "0.5", "--backend", "rlimit", "--", "sleep", "60")
    assert (done.returncode, done.stderr) == (124, "")
    done = subprocess.run([*CLI, "run", "-q", "--", "true"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # nor the limits that it has by default
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("a")
    done = cli("map", "--quiet", "--backend", "rlimit", "--command", "false {input}", "in", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    done = cli("run", "--quiet", "--report", "no/such/folder", "--", "true", cwd=tmp_path)
    assert done.returncode == 125
    assert "the report no/such/folder cannot be written" in done.stderr


def test_verbose_says_each_step(tmp_path: Path) -> None:
    words = ["run", "--verbose", "--backend", "rlimit", "--timeout", "60s", "--report", "r.json", "--", "true"]
    lines = cli(*words, cwd=tmp_path).stderr.splitlines()
    assert lines[:2] == ["gwsandbox: backend: rlimit", "gwsandbox: limit --timeout 60 s"]
    assert "gwsandbox: wall_seconds was held by deadline + SIGKILL" in lines
    assert lines[-1] == "gwsandbox: the report is r.json"


def test_verbose_map_says_each_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    words = ["--output-dir", "out", "--report", "r.jsonl", "--command", "cp {input} {output}", "a", "b"]
    lines = cli("map", "--verbose", "--backend", "rlimit", "--workers", "2", *words, cwd=tmp_path).stderr.splitlines()
    for line in ("backend: rlimit", "2 inputs to do, 2 at a time", "outputs go to out/", "the report is r.jsonl"):
        assert f"gwsandbox map: {line}" in lines
    assert any(line.startswith("slowest ") for line in lines)


def test_explain_starts_nothing(tmp_path: Path) -> None:
    words = ["--backend", "rlimit", "--memory", "1GiB", "--report", "r", "--", "touch", "made", "\x1b[2J"]
    done = cli("run", "--explain", *words, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[:2] == [r"program: touch made '\x1b[2J'", "backend: rlimit"]
    assert lines[2].startswith("limit --memory 1 GiB (not fully: the sum over the tree is sampled")
    assert lines[-2:] == ["report: r", "nothing was started (--explain)"]
    assert not list(tmp_path.iterdir())


def test_explain_a_map(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(7):
        (tmp_path / "in" / f"{number}.txt").write_text("text")
    words = ["--output-dir", "out", "--suffix", ".pdf", "--report", "r", "--command", "cp {input} {output}", "in"]
    done = cli("map", "--explain", "--backend", "rlimit", "--workers", "3", *words, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[:2] == ["7 inputs, 3 at a time", "backend: rlimit"]
    assert lines[2] == "  cp in/0.txt out/0.pdf"
    assert lines[-3:] == [
        "  and 2 more",
        "report: r; inputs that have a row in it are skipped",
        "nothing was started (--explain)",
    ]
    assert os.listdir(tmp_path) == ["in"]


def test_no_colours_where_none_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    words = ["map", "--backend", "rlimit", "--command", "true {input}", "a"]
    for more, coloured in (({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"TERM": "xterm-256color"}, True)):
        with Terminal(*words, cwd=tmp_path, **more) as terminal:
            assert terminal.end() == 0
            assert (ESCAPE.search(terminal.shown) is not None) == coloured, (more, terminal.shown)


# --- completion ------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "worker.py").write_text(
        "raise SystemExit\ndef convert(): ...\nasync def count(): ...\ndef _own(): ...\nclass Steps:\n    def go(self): ...\n"
    )
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.pdf").write_text("a")
    return tmp_path


def complete(place: Path, *words: str) -> list[str]:
    """What bash offers for the last word, by the script that --show-completion prints."""
    script = (
        'source <("$@"); COMP_WORDS=("${WORDS[@]}"); COMP_CWORD=$((${#WORDS[@]} - 1)); _gwsandbox_completion gwsandbox\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    words_of_bash = shlex.join(["gwsandbox", *words])
    folder = place / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "gwsandbox").write_text(f'#!/bin/sh\nexec {sys.executable} -m gwsandbox "$@"\n')
    (folder / "gwsandbox").chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", f"WORDS=({words_of_bash})\n{script}", "bash", "gwsandbox", "--show-completion", "bash"],
        cwd=place,
        env=environment(PATH=f"{folder}:{os.environ['PATH']}", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ru"], ["run"]),
        (["map", "--time"], ["--timeout"]),
        (["run", "--backend", "c"], ["cgroup"]),
        (["map", "wor"], ["worker:", "worker.py"]),
        (["map", "worker", ":"], ["convert", "count", "Steps.go"]),
        (["map", "worker", ":", "co"], ["convert", "count"]),
        (["map", "worker:convert", "doc"], ["documents/"]),
        (["map", "--command", "'true {}'", "documents/"], ["documents/a.pdf"]),
        (["map", "nowhere", ":"], []),
    ],
)
def test_bash_is_offered_what_fits(place: Path, words: list[str], offered: list[str]) -> None:
    assert complete(place, *words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_of_completion_for_each_shell(shell: str) -> None:
    done = cli("--show-completion", shell, env=environment(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"))
    assert done.returncode == 0
    assert "_GWSANDBOX_COMPLETE" in done.stdout
    if shutil.which(shell) is not None:
        checked = subprocess.run([shell, "-n"], input=done.stdout, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


# --- manual pages ----------------------------------------------------------------------------------------

REQUESTS = {"TH", "SH", "B", "PP", "TP", "nf", "fi"}


def check_page(text: str) -> None:
    """Nothing but what is meant is a request to troff."""
    lines = text.splitlines()
    assert lines[0].startswith(".TH GWSANDBOX")
    assert {line.split()[0][1:] for line in lines if line.startswith((".", "'"))} <= REQUESTS
    assert not [line for line in lines if re.search(r"(?<!\\)-", line) and not line.startswith(".TH")]
    assert text.index(".SH NAME") < text.index(".SH DESCRIPTION") < text.index(".SH SEE ALSO")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_has_all_that_its_help_has(name: str) -> None:
    page = cli("man", name).stdout
    check_page(page)
    shown = cli(name, "--help").stdout
    for option in set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", shown.partition("\nExamples:")[0], re.MULTILINE)):
        assert option.replace("-", "\\-") in page, option
    assert ".SH EXAMPLES" in page


def test_the_page_of_the_configuration_has_every_key() -> None:
    page = cli("man", "gwsandbox.toml").stdout
    check_page(page)
    keys = {*ServiceConfig.__slots__, *FolderConfig.__slots__, *WorkerConfig.__slots__, *MetricsConfig.__slots__}
    for key in keys:
        assert f"\n.B {key}\n" in page, key


def test_all_pages_are_written_below_a_folder(tmp_path: Path) -> None:
    done = cli("man", "--install", str(tmp_path / "man"))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"gwsandbox: {len(COMMANDS) + 2} pages are in {tmp_path}/man\n"
    for path in (tmp_path / "man").rglob("*.*"):
        check_page(path.read_text())
    assert (tmp_path / "man" / "man1" / "gwsandbox-map.1").exists()
    assert (tmp_path / "man" / "man5" / "gwsandbox.toml.5").exists()


def test_pages_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words, message in (
        (["mpa"], "gwsandbox man: there is no page on mpa; there is one on run, map, "),
        (["--install", str(tmp_path / "file")], "gwsandbox.1 cannot be written: Not a directory; choose another"),
    ):
        done = cli("man", *words)
        assert done.returncode == 125
        assert message in done.stderr
