"""The JSON schema of reports, which is shipped in the package, and the version that it describes."""

from __future__ import annotations

from importlib import resources


def schema_text() -> str:
    """The schema, as JSON: of reports of ``run``, rows of ``map``, reports of the service, and ``doctor --json``."""
    return resources.files("gwsandbox.report").joinpath("report.schema.json").read_text(encoding="utf-8")
