"""``ReportFile``: a file for one JSON object, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from gwsandbox.cli.messages import Failure


class ReportFile:
    """The file for one JSON object.

    Args:
        path: Of the file. A regular file is replaced; anything else (/dev/stderr, a pipe) is written to.

    Raises:
        Failure: The file cannot be written. This is checked at once, before the program runs.
    """

    def __init__(self, path: str) -> None:
        # A link stays a link: its target is replaced.
        self._replace = not os.path.exists(path) or os.path.isfile(path)
        self._path = os.path.realpath(path) if self._replace else path
        self._staged = f"{os.path.dirname(self._path)}/.{os.path.basename(self._path)}.{os.getpid()}"
        try:
            if not self._replace:
                self._open(self._path, os.O_WRONLY)
            else:
                self._open(self._staged, os.O_WRONLY | os.O_CREAT)
                os.unlink(self._staged)
        except OSError as error:
            raise _unwritable(path, error) from error

    @staticmethod
    def _open(path: str, flags: int) -> None:
        os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666))

    def write(self, value: dict[str, Any]) -> None:
        """Write ``value`` and a line break.

        Raises:
            Failure: The file cannot be written.
        """
        text = json.dumps(value, indent=2) + "\n"
        try:
            if self._replace:
                self._write_beside(text)
            else:
                with open(self._path, "w", encoding="ascii") as file:
                    file.write(text)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _write_beside(self, text: str) -> None:
        try:
            with open(self._staged, "w", encoding="ascii") as file:
                file.write(text)
            os.replace(self._staged, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self._staged)
            raise


def _unwritable(path: str, error: OSError) -> Failure:
    return Failure(f"the report {path} cannot be written: {error.strerror}; choose another place by --report")
