"""The template of ``gwsandbox map --command``: a command line with placeholders, which no shell reads."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil

from gwsandbox.cli.messages import Failure
from gwsandbox.model.text import INPUT, OUTPUT, fill_placeholders, shown

_QUOTATION = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_OPERATOR = re.compile(r"\d?[<>]+&?|\|+|&+|;|`|\$\(")
_PLACEHOLDER = re.compile(r"(?<!\$)(\{[^{}\s]{1,20}\})")


class Template:
    """A command line in which ``{input}`` and ``{output}`` stand for the paths.

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
        if not any(INPUT in word for word in self._words):
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
            if close and name not in {INPUT, OUTPUT}:
                raise _failure(text, f" has {name}; did you mean {close[0]}?")

    def words(self, path: str, output: str | None) -> list[str]:
        """The program and its arguments for one input."""
        # A path may begin with a dash, or hold "{output}".
        path = os.path.join(".", path) if path.startswith("-") else path
        return [fill_placeholders(word, path, output or "") for word in self._words]


def _failure(text: str, problem: str) -> Failure:
    return Failure(f"--command {text!r}{problem}")


def _check_program(text: str, program: str) -> None:
    """Say once, before anything starts, what every task would say."""
    if INPUT in program or OUTPUT in program or shutil.which(program) is not None:
        return
    if "/" not in program:
        raise _failure(text, f": {shown(program)} is not found in any folder of PATH, so nothing was started")
    if not os.path.exists(program):
        raise _failure(text, f": {shown(program)} is not found, so nothing was started")
    raise _failure(text, f": {shown(program)} cannot be executed, so nothing was started; check its permissions")
