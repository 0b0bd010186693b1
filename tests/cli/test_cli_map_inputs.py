"""``gwsandbox map``: where inputs come from, and what a template makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import cli, rows
from test_cli_map import fill, summary, tree

MAP = ["map", "--backend", "rlimit", "--workers", "1"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    fill(tmp_path, **{"in__a.txt": "a", "in__b.md": "b", "in__deep__c.txt": "c", "in__deep__d.md": "d"})
    return tmp_path


def outputs(place: Path) -> list[str]:
    return sorted(tree(place / "out"))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("in/**/*.txt", ["a.txt", "deep/c.txt"]),
        ("in/*.md", ["b.md"]),
        ("in/d*", ["deep/c.txt", "deep/d.md"]),
        ("./in/[ab].*", ["a.txt", "b.md"]),
    ],
)
def test_patterns_are_filled_in_and_mirrored_from_where_they_begin(place: Path, pattern: str, found: list[str]) -> None:
    done = cli(*MAP, "--output-dir", "out", "--command", "cp {input} {output}", pattern, cwd=place)
    assert (done.returncode, outputs(place)) == (0, found), done.stderr


def test_a_pattern_finds_neither_outputs_nor_report(place: Path) -> None:
    words = [*MAP, "--output-dir", "in/out", "--report", "in/r.txt", "--command", "cp {input} {output}", "in/**/*.txt"]
    assert summary(cli(*words, cwd=place).stderr) == "gwsandbox map: 2 succeeded"
    assert summary(cli(*words, cwd=place).stderr) == "gwsandbox map: 0 succeeded, 2 skipped"


def test_a_file_whose_name_is_a_pattern_is_that_file(place: Path) -> None:
    fill(place, **{"[x].txt": "text"})
    done = cli(*MAP, "--output-dir", "out", "--command", "cp {input} {output}", "[x].txt", cwd=place)
    assert (done.returncode, outputs(place)) == (0, ["[x].txt"])


def test_a_pattern_without_a_file_is_refused(place: Path) -> None:
    done = cli(*MAP, "--command", "true {}", "in/*.pdf", cwd=place)
    assert done.returncode == 125
    assert "1 input cannot be read, so nothing was started: in/*.pdf: no file has a name like this" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-"], "in/a.txt\n\nin/deep/c.txt\n"),
        (["-0"], "in/a.txt\0in/deep/c.txt\0"),
        (["--null", "-"], "in/a.txt\0in/deep/c.txt"),
    ],
)
def test_paths_from_stdin_are_mirrored_whole(place: Path, words: list[str], text: str) -> None:
    done = cli(*MAP, "--output-dir", "out", "--command", "cp {input} {output}", *words, cwd=place, input=text)
    assert (done.returncode, outputs(place)) == (0, ["in/a.txt", "in/deep/c.txt"]), done.stderr


def test_paths_from_stdin_that_are_elsewhere(place: Path) -> None:
    (place / "here").mkdir()
    words = [*MAP, "--output-dir", "out", "--command", "cp {input} {output}", "-"]
    done = cli(*words, cwd=place / "here", input=f"../in/a.txt\n{place}/in/b.md\n")
    assert done.returncode == 0, done.stderr
    assert outputs(place / "here") == [f"{str(place)[1:]}/in/a.txt", f"{str(place)[1:]}/in/b.md"]


def test_names_on_stdin_that_hold_line_breaks(place: Path) -> None:
    (place / "two\nlines").write_text("text")
    done = cli(*MAP, "-0", "--report", "r", "--command", "cat {}", cwd=place, input="two\nlines\0")
    assert (done.returncode, rows(place / "r")[0]["stdout"]) == (0, "text")


def test_a_missing_path_on_stdin_is_refused(place: Path) -> None:
    done = cli(*MAP, "--command", "cat {}", "-", cwd=place, input="in/a.txt\ngone\n")
    assert done.returncode == 125
    assert "1 input cannot be read, so nothing was started: gone: No such file" in done.stderr


def test_suffix(place: Path) -> None:
    words = [*MAP, "--output-dir", "out", "--suffix", ".pdf", "--command", "cp {input} {output}", "in"]
    assert cli(*words, cwd=place).returncode == 0
    assert outputs(place) == ["a.pdf", "b.pdf", "deep/c.pdf", "deep/d.pdf"]
    assert summary(cli(*words, cwd=place).stderr) == "gwsandbox map: 0 succeeded, 4 skipped"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suffix", ".pdf"], "Invalid value for --suffix: needs --output-dir DIR"),
        (["--output-dir", "out", "--suffix", "pdf"], "'pdf' is no suffix; write for example .pdf"),
        (["--output-dir", "out", "--suffix", "./x"], "'./x' is no suffix; write for example .pdf"),
    ],
)
def test_a_suffix_that_cannot_be(place: Path, words: list[str], message: str) -> None:
    done = cli(*MAP, *words, "--command", "cp {input} {output}", "in", cwd=place)
    assert done.returncode == 2
    assert message in done.stderr


def test_two_inputs_of_one_name_but_for_the_suffix(place: Path) -> None:
    fill(place, **{"in__a.md": "a"})
    done = cli(*MAP, "--output-dir", "out", "--suffix", ".x", "--command", "cp {input} {output}", "in", cwd=place)
    assert done.returncode == 125
    assert "in/a.txt and in/a.md both give a.x" in done.stderr


def test_shuffle_changes_the_order_alone(place: Path) -> None:
    fill(place, **{f"many__{number:02}": "x" for number in range(24)})
    cli(*MAP, "--shuffle", "--report", "r", "--command", "true {}", "many", cwd=place)
    found = [row["input"] for row in rows(place / "r")]
    assert found != sorted(found)  # one time in 24! it is
    assert sorted(found) == [f"many/{number:02}" for number in range(24)]


# --- templates -------------------------------------------------------------------------------------------


def test_parts_of_the_path(place: Path) -> None:
    template = "printf '%s\\n' {} {input} {.} {/} {/.} {//} x{/.}y"
    cli(*MAP, "--report", "r", "--command", template, "in/deep/c.txt", cwd=place)
    lines = rows(place / "r")[0]["stdout"].splitlines()
    assert lines == ["in/deep/c.txt", "in/deep/c.txt", "in/deep/c", "c.txt", "c", "in/deep", "xcy"]


def test_no_part_of_a_path_is_an_option(place: Path) -> None:
    fill(place, **{"-d__-n.txt": "x"})
    cli(*MAP, "--report", "r", "--command", "printf '%s\\n' {} {/} {//}", "--", "-d", cwd=place)
    assert rows(place / "r")[0]["stdout"].splitlines() == ["./-d/-n.txt", "./-n.txt", "./-d"]


@pytest.mark.parametrize("shell", ["sh -c", "bash -ec", "/bin/sh -xc"])
def test_the_name_of_a_file_is_no_code_of_a_shell(place: Path, shell: str) -> None:
    done = cli(*MAP, "--command", f"{shell} 'cat {{input}}'", "in", cwd=place)
    assert done.returncode == 125
    assert 'gives a shell the names of files to read as its code; write "$1" there' in done.stderr


def test_the_code_of_a_shell_is_left_alone(place: Path) -> None:
    template = """sh -c 'find "$1" -exec cat {} +; echo {.}' sh {input}"""
    cli(*MAP, "--report", "r", "--command", template, "in/a.txt", cwd=place)
    assert rows(place / "r")[0]["stdout"] == "a{.}\n"
