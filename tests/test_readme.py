"""The pages: every snippet runs, every link leads somewhere, and what they list is all that there is.

A snippet is a fenced block in one of ``LANGUAGES``. Python blocks run as programs, each in a folder of its own; a block
of text right below one shows what it prints. In console blocks bash runs the lines that start with ``$ ``, and the
lines below each show what it prints: each has to be among its output, where ``…`` stands for anything. A command
must exit with 0, unless ``$ echo $?`` follows.

A comment right above a block, which a reader does not see, declares the rest:

``<!-- needs: NAME, NAME -->``
    A marker of ``features.PROBES``, a maker of files in ``FIXTURES``, a file that another block of the page shows, or
    ``clone``: the block runs in the root of the repository.
``<!-- file: NAME.py -->``
    The block is the file NAME.py, for those that need it.
``<!-- not run: WHY -->``
    It cannot run here. ``NOT_RUN`` counts these, so that none is added unseen.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import features
import pytest
from support import SLOW
from test_house import FLOORS

import gwsandbox
from gwsandbox import Limits, Outcome
from gwsandbox.model.limits import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("gwsandbox", "tests", "scripts", "systemd", ".github")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])

LANGUAGES = ("python", "console")
OTHER_LANGUAGES = ("text", "toml", "ini")

_MAKES_ENVIRONMENT = "makes an environment of its own, from an index of packages"
NOT_RUN = Counter(
    {
        ("README.md", _MAKES_ENVIRONMENT): 2,
        ("tests/README.md", _MAKES_ENVIRONMENT): 1,
        ("tests/README.md", "boots a virtual machine"): 1,
        (".github/CONTRIBUTING.md", _MAKES_ENVIRONMENT): 1,
        (".github/CONTRIBUTING.md", "measures for minutes"): 1,
        ("scripts/README.md", "boots a virtual machine"): 2,
        ("scripts/README.md", "measures for minutes"): 1,
        ("systemd/README.md", "needs root and systemd"): 3,
        ("tests/README.md", "takes half an hour"): 1,
    }
)
"""For each page and reason, how many blocks do not run."""

_BLOCK = re.compile(
    r"^(?:<!-- (?P<note>[^\n]+) -->\n\n?)?```(?P<language>\S*)\n(?P<text>.*?)^```$(?:\n\n?```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)

# What a page may name in code: anything in a folder of ours, and files in folders below the page's own.
_FILE = re.compile(
    rf"(?<![\w./=@-])((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./@-]*\w|[\w./-]+/[\w.-]+\.(?:py|md|conf|service))(?!\w)"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with what its comment declares."""

    page: str
    line: int
    language: str
    text: str
    printed: str
    needs: tuple[str, ...] = ()
    file: str = ""
    not_run: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [_block(page, text, match) for match in _BLOCK.finditer(text)]


def _block(page: str, text: str, match: re.Match[str]) -> Block:
    line = text.count("\n", 0, match.start("text"))
    kind, _, value = (match["note"] or "").partition(": ")
    assert kind in {"", "needs", "file", "not run"}, f"{page}:{line}: a comment that declares nothing: {match['note']}"
    needs = tuple(value.split(", ")) if kind == "needs" else ()
    file, not_run = (value if kind == wanted else "" for wanted in ("file", "not run"))
    return Block(page, line, match["language"], match["text"], match["printed"] or "", needs, file, not_run)


TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS = [block for page, text in TEXTS.items() for block in blocks(page, text)]


# --- running --------------------------------------------------------------------------------------------


def _documents(folder: Path) -> None:
    """Two texts in ``documents/``."""
    (folder / "documents").mkdir()
    (folder / "documents/letter.txt").write_text("Dear reader\n")
    (folder / "documents/report.txt").write_text("All is well, and has been for long\n")


FIXTURES: dict[str, Callable[[Path], None]] = {"documents": _documents}


def run_block(block: Block, others: list[Block], folder: Path) -> None:
    """Run a block, and compare what it prints.

    Args:
        block: In one of ``LANGUAGES``.
        others: Blocks of the same page.
        folder: An empty one, for it to run in.
    """
    files = {other.file: other.text for other in others if other.file}
    for need in block.needs:
        if need in files:
            (folder / need).write_text(files[need], encoding="utf-8")
        elif need in FIXTURES:
            FIXTURES[need](folder)
        elif need == "clone":
            folder = ROOT
        else:
            assert need in features.PROBES, f"{block} needs {need}, which nothing provides"
    (_run_python if block.language == "python" else _run_console)(block, folder)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",  # a run inside of this one leaves its notes alone
    }


def _run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60 * SLOW,  # a guard only
        check=False,
    )


def _run_python(block: Block, folder: Path) -> None:
    name = block.file or "snippet.py"
    (folder / name).write_text(block.text, encoding="utf-8")
    done = _run(sys.executable, name, folder=folder)
    assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    _compare(str(block), block.printed, done.stdout)


class Step(NamedTuple):
    """A command of a console block, and the output that is shown below it."""

    command: str
    shown: str


def steps(block: Block) -> list[Step]:
    found: list[Step] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], ""))
        else:
            assert found, f"{block}: no command before {line!r}"
            command, shown = found[-1]
            goes_on = line.startswith("> ") and not shown
            found[-1] = Step(f"{command}\n{line[2:]}", "") if goes_on else Step(command, f"{shown}{line}\n")
    assert found, f"{block} has no command"
    return found


# After each command: its exit code, between two characters that no command prints; and ``$?`` as it was.
_MARK = "\x1e"
_PRELUDE = "exec 2>&1\n__mark() { local code=$?; printf '\\036%d\\036' $code; return $code; }\n"


def _run_console(block: Block, folder: Path) -> None:
    todo = steps(block)
    script = _PRELUDE + "".join(f"{step.command}\n__mark\n" for step in todo)
    done = _run("bash", "-c", script, folder=folder)
    parts = done.stdout.split(_MARK)
    assert len(parts) == 2 * len(todo) + 1, f"{block}: bash ended before its time:\n{done.stdout}"
    for place, step in enumerate(todo):
        output, code = parts[2 * place], int(parts[2 * place + 1])
        follows = todo[place + 1].command if place + 1 < len(todo) else ""
        assert code == 0 or follows.startswith("echo $?"), f"{block}: {step.command} ended with {code}:\n{output}"
        _compare(f"{block}: {step.command}", step.shown, output)


def _compare(what: str, shown: str, output: str) -> None:
    """Each line that is shown is among the output; ``…`` stands for anything, and white space for any."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    for line in shown.splitlines():
        pattern = re.escape(" ".join(line.split())).replace("…", ".*")
        assert any(re.fullmatch(pattern, other) for other in lines), f"{what}: prints no line {line!r}, but:\n{output}"


CASES = [
    pytest.param(
        block, id=str(block), marks=[getattr(pytest.mark, need) for need in block.needs if need in features.PROBES]
    )
    for block in BLOCKS
    if block.language in LANGUAGES and not block.not_run
]


@pytest.mark.parametrize("block", CASES)
def test_a_snippet_does_what_the_page_says(block: Block, tmp_path: Path) -> None:
    run_block(block, [other for other in BLOCKS if other.page == block.page], tmp_path)


# --- that none is left out ------------------------------------------------------------------------------


def test_every_block_that_does_not_run_is_counted_here() -> None:
    assert Counter((block.page, block.not_run) for block in BLOCKS if block.not_run) == NOT_RUN


@pytest.mark.parametrize("page", TEXTS)
def test_every_block_of_code_is_seen(page: str) -> None:
    check_blocks(page, TEXTS[page])


def check_blocks(page: str, text: str) -> None:
    found = blocks(page, text)
    fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
    known = 2 * len(found) + 2 * sum(bool(block.printed) for block in found)
    assert fences == known, f"{page} has fences that are no block: indented, or never closed"
    indented = re.findall(r"\n\n(?: {4}|\t).*", _BLOCK.sub("", text))
    assert not indented, f"{page} has a block without fences: {indented[0]}"
    for block in found:
        allowed = (*LANGUAGES, *OTHER_LANGUAGES)
        assert block.language in allowed, f"{block} is in {block.language or 'no language'}, and not one of {allowed}"
        if block.language == "toml":
            tomllib.loads(block.text)


# --- links and names ------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as they are made from Markdown."""
    found: Counter[str] = Counter()
    made = set()
    for heading in re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        made.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return made


def dead_links(page: str, text: str) -> Iterator[str]:
    """Links of a page to files and anchors that are not there, and files that it names and that are not there."""
    prose = _BLOCK.sub("", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8") if path else text)):
            yield target
    shown = [block.text for block in blocks(page, text) if block.language != "python"]
    for name in _FILE.findall("\n".join([*re.findall(r"`([^`\n]+)`", prose), *shown])):
        if not ((ROOT / name).exists() or (ROOT / page).parent.joinpath(name).exists()):
            yield name


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_names_of_files_lead_somewhere(page: str) -> None:
    assert not list(dead_links(page, TEXTS[page]))


# --- the harness itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("snippet", "what"),
    [
        ("```python\nraise SystemExit(3)\n```\n", "ended with 3"),
        ("```python\nimport gwsandbox.nowhere\n```\n", "No module named"),
        ("```python\nprint('one')\n```\n\n```text\ntwo\n```\n", "no line 'two'"),
        ("<!-- needs: nothing known -->\n```python\n```\n", "which nothing provides"),
        ("```console\n$ false\n```\n", "false ended with 1"),
        ("```console\n$ false\n$ echo $?\n0\n```\n", "no line '0'"),
        ("```console\n$ no-such-program\n```\n", "ended with 127"),
        ("```console\n$ echo one\none\n$ echo two\nthree …\n```\n", "no line 'three …'"),
        ("```console\n$ exit 0\n$ echo two\n```\n", "before its time"),
        ("```console\necho two\n```\n", "no command before"),
    ],
)
def test_a_broken_snippet_is_seen(snippet: str, what: str, tmp_path: Path) -> None:
    (block,) = blocks("page", snippet)
    with pytest.raises(AssertionError, match=re.escape(what)):
        run_block(block, [block], tmp_path)


def test_a_snippet_has_what_it_needs(tmp_path: Path) -> None:
    text = "<!-- file: work.py -->\n```python\nNAME = 1\n```\n<!-- needs: work.py, documents -->\n```console\n$ ls\n…\n"
    found = blocks(
        "page", f"{text}work.py\n$ python -c 'import work\n> print(work.NAME)'; false\n1\n$ echo $?  # so\n1\n```\n"
    )
    run_block(found[1], found, tmp_path)
    assert (tmp_path / "documents").is_dir()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("```py\n```\n", "is in py"),
        ("```\n```\n", "is in no language"),
        ("- so:\n\n  ```python\n  ```\n", "fences that are no block"),
        ("```python\n", "fences that are no block"),
        ("so:\n\n    $ ls\n", "without fences"),
        ("<!-- skip -->\n```python\n```\n", "declares nothing"),
    ],
)
def test_a_block_that_would_not_run_is_seen(text: str, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        check_blocks("page", text)


def test_dead_links_are_seen() -> None:
    text = "# A page, `so`\n[a](#a-page-so) [b](#b) [c](tests) [d](no.md) [e](CHANGELOG.md#no) `scripts/test` `tests/no.py`\n"
    assert list(dead_links("README.md", text)) == ["#b", "no.md", "CHANGELOG.md#no", "tests/no.py"]


# --- what the pages list --------------------------------------------------------------------------------


def table_below(page: str, heading: str) -> list[str]:
    """The first column of the first table below a heading, without the back-quotes."""
    section = TEXTS[page].split(f"# {heading}\n", 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert rows is not None
    return [row.split("|")[1].strip().strip("`") for row in rows[0].splitlines()[2:]]


def test_the_outcomes_are_all_there() -> None:
    assert table_below("README.md", "What a result says") == [outcome.name for outcome in Outcome]


def test_the_map_has_the_folders_in_the_order_of_their_imports() -> None:
    rows = table_below("gwsandbox/README.md", "The folders")
    listed = [re.findall(r"[\w/]+", row.replace(".py", "").replace("/", "")) for row in rows]
    assert [set(names) for names in listed] == FLOORS


def test_the_suites_are_all_there() -> None:
    tests = [path.relative_to(ROOT / "tests").parts for path in (ROOT / "tests").rglob("test_*.py")]
    suites = {parts[0] if len(parts) == 1 else f"{parts[0]}/" for parts in tests}
    listed = {name for row in table_below("tests/README.md", "The suites") for name in re.findall(r"[\w./]+", row)}
    assert listed == suites


def test_every_public_name_and_every_limit_is_in_the_readme() -> None:
    words = set(re.findall(r"(?:--)?\w[\w-]*", TEXTS["README.md"]))
    assert {*gwsandbox.__all__, *Limits.__slots__, *OPTIONS.values()} - words == set()


def test_the_version_stands_in_one_place() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "gwsandbox.__version__"}
    # A literal: what is none setuptools would have to import, with all that the package depends on.
    tree = ast.parse((ROOT / "gwsandbox/__init__.py").read_text(encoding="utf-8"))
    literals = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert literals == [gwsandbox.__version__]


def test_the_changelog_starts_with_the_version() -> None:
    headings = re.findall(r"^## (.*)$", TEXTS["CHANGELOG.md"], re.MULTILINE)
    assert re.fullmatch(rf"{re.escape(gwsandbox.__version__)} - (unreleased|\d{{4}}-\d\d-\d\d)", headings[0])
