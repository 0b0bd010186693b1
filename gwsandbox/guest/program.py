"""A guest that becomes a program."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import NoReturn

Program = tuple[tuple[str, ...], str | None, dict[str, str] | None]  # arguments, folder, environment


def become(argv: tuple[str, ...], cwd: str | None, env: dict[str, str] | None, *, data_limit: int) -> NoReturn:
    """Become the program.

    Args:
        argv: Program and arguments.
        cwd: Folder to run in; ``None``: the caller's.
        env: The whole environment; ``None``: the caller's.
        data_limit: RLIMIT_DATA in bytes, to be set when nothing but exec is left to do; 0 is none.

    Raises:
        OSError: It cannot be executed. The error names it as it was given, and what its first line asks for.
    """
    culprit = cwd
    try:
        if cwd is not None:
            os.chdir(cwd)
        culprit = argv[0]
        if data_limit:
            resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))
        _exec(argv, env)
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            _exec_as_script(argv, env)
        # execvpe names the last folder of PATH that it looked into.
        raise OSError(error.errno, error.strerror, culprit, None, _interpreter(culprit)) from None


def exit_code(error: OSError) -> int:
    """The exit code of a program that could not be executed, as a shell's."""
    return 127 if error.errno in {errno.ENOENT, errno.ENOTDIR} else 126


def _exec(argv: tuple[str, ...], env: dict[str, str] | None) -> NoReturn:
    """As execvp(3) or execvpe(3), without Python's long way to them where there is nothing to look up."""
    if "/" in argv[0]:
        if env is None:
            os.execv(argv[0], argv)
        os.execve(argv[0], argv, env)
    if env is None:
        os.execvp(argv[0], argv)
    os.execvpe(argv[0], argv, env)


def _exec_as_script(argv: tuple[str, ...], env: dict[str, str] | None) -> None:
    """As execvp(3) does with a file in no format that the kernel knows: let sh run it, unless it is no text."""
    for folder in [""] if "/" in argv[0] else os.get_exec_path(env):
        path = os.path.join(folder, argv[0])
        if os.access(path, os.X_OK) and os.path.isfile(path):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                if b"\0" not in file.read(256):
                    os.execve("/bin/sh", ("sh", path, *argv[1:]), os.environ if env is None else env)
            return


def _interpreter(program: str | None) -> str | None:
    """What a script asks for in its first line: where that is missing, the script is "not found" though it is there."""
    try:
        with open(program or "", "rb") as file:
            line = file.readline(256)
    except OSError:
        return None
    words = line[2:].split()
    return os.fsdecode(words[0]) if line.startswith(b"#!") and words else None
