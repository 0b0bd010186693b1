"""The command line that repeats one task alone, for messages and reports."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from gwsandbox.model.limits import OPTIONS
from gwsandbox.model.text import shown


def repeat_program(argv: Sequence[str], limits: Mapping[str, float]) -> list[str]:
    """The words that run a program under ``limits``."""
    return ["gwsandbox", "run", *_options(limits), "--", *argv]


def repeat_function(name: str, path: str, output_dir: str | None, limits: Mapping[str, float]) -> list[str]:
    """The words that call a function on one file under ``limits``."""
    words = ["gwsandbox", "map", *_options(limits)]
    if output_dir is not None:
        words += "--fresh", "--output-dir", output_dir
    return [*words, "--", name, path]


def as_line(words: Sequence[str]) -> str:
    """The words as a line for a shell, with nothing that a terminal would obey."""
    return shown(shlex.join(words)).replace("\n", "\\n")


def _options(limits: Mapping[str, float]) -> list[str]:
    words: list[str] = []
    for name, value in limits.items():
        words += OPTIONS[name], f"{value:.9g}" if isinstance(value, float) else str(value)
    return words
