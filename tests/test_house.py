"""The rules of the house that a machine can see: linters, types, which room may import which, docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gwsandbox

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gwsandbox"

# Imports point downward only: a folder may import itself and those before it in this order; what stands together
# may not import each other. A module at the top counts as a folder of its own.
FLOORS = [
    {"model"},
    {"report"},
    {"linux"},
    {"memory_usage"},
    {"backends"},
    {"ipc"},
    {"guest"},
    {"supervisor"},
    {"client"},
    {"manager", "importer", "executor", "aio", "progress"},
    {"run"},
    {"__init__"},
    {"service"},
    {"cli"},
    {"__main__"},
]
FILES = sorted(PACKAGE.rglob("*.py"))


def folder_of(path: Path) -> str:
    """The folder below the package that holds a file, or the module itself where it lies at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(folder: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if folder in floor)


def arrows(path: Path) -> set[str]:
    """The folders of the package that a file imports from, its own left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gwsandbox":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {_top(alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == "gwsandbox"]
            found |= {parts[1] if len(parts) > 1 else "__init__" for parts in names}
    return found - {folder_of(path)}


def _top(name: str) -> str:
    """Whether a name imported from the package itself is a module at its top, or comes from its ``__init__``."""
    return name if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir() else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    own = folder_of(path)
    upward = {folder for folder in arrows(path) if floor_of(folder) >= floor_of(own)}
    assert not upward, f"{own} may not import {', '.join(sorted(upward))}"


def test_every_folder_has_a_floor() -> None:
    assert {folder_of(path) for path in FILES} == set.union(*FLOORS)


def test_an_upward_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "model").mkdir()
    module = tmp_path / "model" / "wrong.py"
    module.write_text(
        "def late():\n    from gwsandbox.supervisor.attempt import Attempt\n    import gwsandbox.cli.run\n"
    )
    assert arrows(module) == {"supervisor", "cli"}
    with pytest.raises(AssertionError, match="model may not import cli, supervisor"):
        test_imports_point_downward(module)


def test_the_modules_of_the_package_import_each_other_without_a_circle() -> None:
    """Down to the modules: each is imported by itself, in an interpreter that has imported nothing of the package."""
    graph = {name: _imports(path) for path in FILES for name in [_dotted(path)]}
    done: set[str] = set()
    while ready := {name for name, wanted in graph.items() if name not in done and not (wanted & graph.keys()) - done}:
        done |= ready
    assert done == set(graph), f"a circle among {sorted(set(graph) - done)}"


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gwsandbox"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found - {_dotted(path)}


def test_every_folder_is_a_package() -> None:
    """Else it is in no wheel."""
    assert {path.parent for path in FILES} == {path.parent for path in FILES if path.name == "__init__.py"}


def test_only_the_wrappers_of_system_calls_use_ctypes() -> None:
    """One of what a process does, one of what it gives up."""
    users = {path for path in FILES if re.search(r"^\s*(import|from) ctypes", path.read_text(), re.MULTILINE)}
    assert users == {PACKAGE / "linux" / "syscalls.py", PACKAGE / "linux" / "confine.py"}


def test_only_the_command_line_exits_and_prints() -> None:
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] in {"cli", "__main__.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"print", "sys.exit", "exit"}, f"{path}:{node.lineno}"


@pytest.mark.parametrize("name", gwsandbox.__all__)
def test_public_names_are_documented(name: str) -> None:
    thing = getattr(gwsandbox, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if inspect.isfunction(value) and not member.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{member}"


def run(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    run("ruff", "check", "--no-cache")


def test_format() -> None:
    run("ruff", "format", "--check", "--no-cache")


def test_mypy(tmp_path: Path) -> None:
    run("mypy", f"--cache-dir={tmp_path}")
