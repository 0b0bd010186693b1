"""The template of ``gwsandbox map --command``: a command line with placeholders, which no shell reads."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Sequence

from gwsandbox.cli.messages import Failure
from gwsandbox.model.text import INPUT, OUTPUT, shown

_QUOTATION = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_OPERATOR = re.compile(r"\d?[<>]+&?|\|+|&+|;|`|\$\(")
_PLACEHOLDER = re.compile(r"(?<!\$)(\{[^{}\s]{1,20}\})")
_OF_INPUT: dict[str, Callable[[str], str]] = {
    "{input}": lambda path: path,
    "{}": lambda path: path,
    "{.}": lambda path: os.path.splitext(path)[0],
    "{/}": os.path.basename,
    "{/.}": lambda path: os.path.splitext(os.path.basename(path))[0],
    "{//}": lambda path: os.path.dirname(path) or os.curdir,
}
"""What stands for the path of an input, and for parts of it, as in GNU parallel."""
_KNOWN = re.compile("|".join(map(re.escape, [*_OF_INPUT, OUTPUT])))
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "ksh", "zsh"})


class Template:
    """A command line in which ``{input}`` and ``{output}`` stand for the paths, and ``{.}`` and the like for parts.

    Args:
        text: The command line, quoted as for a shell.
        has_output: Whether there is an output folder.

    Raises:
        Failure: It cannot work: a quotation does not end, a placeholder is missing, useless or misspelt, it needs a
            shell, or there is no such program.
    """

    def __init__(self, text: str, *, has_output: bool) -> None:
        try:
            self._words = shlex.split(text)
        except ValueError as error:
            raise _failure(text, f": {error}; check its quotes") from error
        self._code = _code_of_a_shell(self._words)
        if self._code is not None and any(name in self._words[self._code] for name in (INPUT, OUTPUT)):
            remedy = f"""write "$1" there, and {INPUT} after it: sh -c 'PROGRAM "$1" …' sh {INPUT}"""
            raise _failure(text, f" gives a shell the names of files to read as its code; {remedy}")
        if not any(name in _OF_INPUT for word in self._filled() for name in _KNOWN.findall(word)):
            raise _failure(text, f" has no {INPUT}; write it where the input's path goes")
        says_output = any(OUTPUT in word for word in self._words)
        if says_output and not has_output:
            raise _failure(text, f" has an {OUTPUT}; say --output-dir DIR, or take it out")
        if has_output and not says_output:
            raise _failure(text, f" has no {OUTPUT}; add it, or leave out --output-dir")
        self._check_words(text)
        _check_program(text, self._words[0])

    def _check_words(self, text: str) -> None:
        if operator := _OPERATOR.search(_QUOTATION.sub("", text)):
            remedy = f"""write sh -c 'PROGRAM "$1" …' sh {INPUT}, or quote it where the program is to get it"""
            raise _failure(text, f" has {operator[0]!r}, and no shell reads it; {remedy}")
        for name in (name for word in self._words for name in _PLACEHOLDER.findall(word)):
            close = difflib.get_close_matches(name.lower(), [INPUT, OUTPUT], n=1, cutoff=0.75)
            if close and name not in {*_OF_INPUT, OUTPUT}:
                raise _failure(text, f" has {name}; did you mean {close[0]}?")

    def words(self, path: str, output: str | None) -> list[str]:
        """The program and its arguments for one input."""

        def fill(match: re.Match[str]) -> str:
            if match[0] == OUTPUT:
                return output or ""
            part = _OF_INPUT[match[0]](path)
            return os.path.join(os.curdir, part) if part.startswith("-") else part  # else it would be an option

        return [word if place == self._code else _KNOWN.sub(fill, word) for place, word in enumerate(self._words)]

    def _filled(self) -> list[str]:
        """The words in which placeholders are filled in."""
        return [word for place, word in enumerate(self._words) if place != self._code]


def _code_of_a_shell(words: Sequence[str]) -> int | None:
    """The place of what a shell would read as code: a file may have a name that is code. ``None``: there is none."""
    if not words or os.path.basename(words[0]) not in _SHELLS:
        return None
    return next((place for place, word in enumerate(words[:-1], 1) if re.fullmatch(r"-[a-z]*c", word)), None)


def _failure(text: str, problem: str) -> Failure:
    return Failure(f"--command {text!r}{problem}")


def _check_program(text: str, program: str) -> None:
    """Say once, before anything starts, what every task would say."""
    if _KNOWN.search(program) or shutil.which(program) is not None:
        return
    if "/" not in program:
        raise _failure(text, f": {shown(program)} is not found in any folder of PATH, so nothing was started")
    if not os.path.exists(program):
        raise _failure(text, f": {shown(program)} is not found, so nothing was started")
    raise _failure(text, f": {shown(program)} cannot be executed, so nothing was started; check its permissions")
