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

# Imports point downward only: a room may import itself and those below it. Anyone may import words.
WORDS = {"errors", "limits", "task", "result", "judge"}
GROUND = {"kernel", "process_tree", "scope", "systemd"}
WALLS = {"backend", "rlimit", "cgroup"}
YARD = {"protocol", "transport", "output", "loop", "guest", "zygote", "keeper", "attempt", "nursery", "supervisor"}
DESK = {"settings", "unwrap", "engine", "manager", "run", "memory_usage", "cli", "service", "__main__", "__init__"}
ROOMS = [WORDS, GROUND, WALLS, YARD, DESK]


def room_of(module: str) -> int:
    return next(number for number, room in enumerate(ROOMS) if module in room)


def imported(path: Path) -> set[str]:
    """The modules of the package, at its top level, that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "gwsandbox":
            found |= {alias.name for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gwsandbox."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gwsandbox.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    upward = {module for module in imported(path) if room_of(module) > room_of(own)}
    assert not upward, f"{own} is in a lower room than {', '.join(upward)}"


def test_every_module_has_a_room() -> None:
    modules = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert modules == set.union(*ROOMS)


def test_only_the_kernel_module_uses_ctypes() -> None:
    users = {path.name for path in FILES if re.search(r"^\s*(import|from) ctypes", path.read_text(), re.MULTILINE)}
    assert users == {"kernel.py"}


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


def test_mypy(tmp_path: Path) -> None:
    run("mypy", f"--cache-dir={tmp_path}")
