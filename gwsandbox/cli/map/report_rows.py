"""The report of ``gwsandbox map``: a row of JSON per finished input, which the next run reads."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import stat
from dataclasses import dataclass
from typing import Any, Self

from gwsandbox.cli.map.inputs import Input
from gwsandbox.cli.messages import Failure
from gwsandbox.model.result import Outcome
from gwsandbox.model.serialise import as_line
from gwsandbox.model.text import shown

_NOT_FINAL = frozenset({Outcome.CANCELLED.name, Outcome.SANDBOX_ERROR.name})


@dataclass(frozen=True, slots=True)
class Row:
    """The row of one input in the report of an earlier run."""

    size: int
    mtime_ns: int
    outcome: str
    output: str | None
    task: list[str]

    def is_of(self, file: Input, output: str | None) -> bool:
        """Whether the row is about this version of the file, and its output is in place."""
        if (self.size, self.mtime_ns) != (file.size, file.mtime_ns) or self.outcome in _NOT_FINAL:
            return False
        return self.output == output and (not self.succeeded or output is None or os.path.exists(output))

    @property
    def succeeded(self) -> bool:
        return self.outcome == Outcome.SUCCEEDED.name


class ReportRows:
    """The report file, locked for this run; ``rows`` holds its rows, by the path of the input.

    Args:
        path: Of the report. The file is created where it does not exist.
        fresh: Whether ``begin`` removes the rows of earlier runs.

    Raises:
        Failure: The file cannot be read or written, another run writes it, or it is no report.
    """

    def __init__(self, path: str, *, fresh: bool) -> None:
        self._path = path
        self._fresh = fresh
        self.rows: dict[str, Row] = {}
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._failure(f"cannot be written: {error.strerror}", "choose another by --report") from error
        try:
            self._check_kind()
            self._lock()
            self._end = self._read()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def fileno(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def row_of(self, file: Input, output: str | None, task: list[str]) -> Row | None:
        """The row of a file that was worked on as it is now; ``None`` where there is none.

        Args:
            file: The input.
            output: Path of its output.
            task: The work, as a row has it.

        Raises:
            Failure: The row is of other work.
        """
        row = self.rows.get(file.path)
        if row is None or not row.is_of(file, output):
            return None
        if row.task != task:
            raise self._failure(
                f"is of another command: {shown(shlex.join(row.task))}",
                "choose another one by --report, or do all again by --fresh",
            )
        return row

    def begin(self) -> None:
        """Cut off the unfinished row of a killed run; for a fresh start, cut off all rows."""
        os.ftruncate(self._fd, 0 if self._fresh else self._end)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, by one write(2): a kill leaves it whole, absent, or torn at the end of the file.

        Raises:
            Failure: The disk is full, or the like.
        """
        data = memoryview(as_line(row).encode("ascii"))
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise self._failure(
                f"cannot be written any more: {error.strerror}",
                "free some space, and the same command goes on from here",
            ) from error

    def _check_kind(self) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise self._failure("is not a regular file", "choose another one by --report")

    def _lock(self) -> None:
        try:
            # Not flock(2): guests would inherit that lock.
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EAGAIN}:
                raise self._failure(
                    "is being written by another run", "wait for that, or choose another one by --report"
                ) from error

    def _read(self) -> int:
        """Read the rows; the offset where the last whole one ends."""
        end = 0
        # Not through a duplicate: closing any descriptor of the file would give up its lock.
        with open(self._fd, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    self._check_torn(line, number)
                    break
                self._take(line, number)
                end += len(line)
        return end

    def _take(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            task = [str.__str__(word) for word in row["task"]]
            self.rows[row["input"]] = Row(row["input_size"], row["input_mtime_ns"], row["outcome"], row["output"], task)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._no_report(number) from error

    def _check_torn(self, line: bytes, number: int) -> None:
        """Refuse a file that is no report: ``begin`` would cut off its last line where that lacks a line break."""
        head = b'{"input": '
        if number == 1 and line[: len(head)] != head[: len(line)]:
            raise self._no_report(number)

    def _no_report(self, number: int) -> Failure:
        what = f"is not a report of gwsandbox map (line {number})"
        return self._failure(what, "choose another one by --report, or remove it")

    def _failure(self, what: str, remedy: str) -> Failure:
        return Failure(f"the report {shown(self._path)} {what}; {remedy}")
