"""What a shell is offered while somebody types: files, modules and their functions. Nothing is imported for it."""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from typing import Any

_MOST = 500  # entries of a folder


class _Whole(str):
    """A word that Typer does not compare with what is typed: a colon, after which bash begins a word of its own."""

    __slots__ = ()

    def startswith(self, *_: Any) -> bool:
        return True


def complete_map(ctx: Any, incomplete: str) -> Sequence[str]:
    """Values for the arguments of ``map``.

    Args:
        ctx: The context of Typer, with the arguments before this one.
        incomplete: What is typed of this one. bash gives it from the last colon on.
    """
    before = [word for word in ctx.params.get("arguments") or () if isinstance(word, str)]
    if before and (incomplete == ":" or before[-1] == ":"):  # bash takes a colon for a word of its own
        module = before[-2] if before[-1] == ":" and len(before) > 1 else before[-1]
        return [_Whole(name) for name in _functions(module, "" if incomplete == ":" else incomplete)]
    module, colon, function = incomplete.partition(":")
    if colon:
        return [f"{module}:{name}" for name in _functions(module, function)]
    needs_function = not before and not ctx.params.get("command")
    return [*(_modules(incomplete) if needs_function else ()), *_files(incomplete)]


def _modules(incomplete: str) -> list[str]:
    folder, _, start = incomplete.rpartition(".")
    found = []
    for name in _entries(folder.replace(".", "/") or os.curdir):
        stem, suffix = os.path.splitext(name)
        if suffix == ".py" and stem.isidentifier() and stem.startswith(start):
            found.append(f"{folder}.{stem}:" if folder else f"{stem}:")
    return found


def _functions(module: str, start: str) -> list[str]:
    """The functions at the top of a module, and of its classes, as its text has them."""
    path = module.replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__init__.py"):
        try:
            with open(candidate, "rb") as file:
                tree = ast.parse(file.read())
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue
        return [name for name in _names(tree) if name.startswith(start)]
    return []


def _names(tree: ast.Module) -> list[str]:
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node.name)
        elif isinstance(node, ast.ClassDef):
            found += [f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)]
    return [name for name in found if not name.rpartition(".")[2].startswith("_")]


def _files(incomplete: str) -> list[str]:
    folder, start = os.path.split(incomplete)
    found = []
    for name in _entries(folder or os.curdir):
        if name.startswith(start) and (start or not name.startswith(".")):
            path = os.path.join(folder, name)
            found.append(f"{path}/" if os.path.isdir(path) else path)
    return found


def _entries(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))[:_MOST]
    except OSError:
        return []
