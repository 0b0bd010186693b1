"""``gwsandbox report``: pictures and tables of a run."""

from __future__ import annotations

from gwsandbox.cli.messages import note
from gwsandbox.cli.streams import print_lines
from gwsandbox.model.text import shown
from gwsandbox.report.make import FORMATS, format_of, write_whole
from gwsandbox.report.rows import read_rows, title_of
from gwsandbox.report.schema import schema_text


def make_report(path: str, output: str | None, form: str | None) -> int:
    """Make a report of a report file; the exit code.

    Args:
        path: Of the file that ``--report`` wrote.
        output: Of the file to write; ``None``: stdout.
        form: Its format; ``None``: as the name of ``output`` says, else Markdown.

    Raises:
        Failure, SandboxError: One of the files cannot be read or written, or a package is missing.
    """
    form = form or ("md" if output is None else format_of(output))
    rows = read_rows(path)
    text = FORMATS[form](rows, title_of(path, rows))
    if output is None:
        print_lines(text.rstrip("\n"))
    else:
        write_whole(output, text)
        note(f"{shown(output)} shows {len(rows)} tasks")
    return 0


def print_schema() -> int:
    """Print the JSON schema of reports; the exit code.

    Raises:
        Failure: It cannot be written.
    """
    print_lines(schema_text().rstrip("\n"))
    return 0
