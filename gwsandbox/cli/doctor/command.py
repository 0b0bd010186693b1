"""``gwsandbox doctor``: the limits that this host can enforce, and a reason and a remedy for each other one."""

from __future__ import annotations

import json
import os
import platform
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import gwsandbox
from gwsandbox.cli.doctor.host import Host, inspect_host
from gwsandbox.cli.doctor.probes import Finding, each_backend, probe_hardening
from gwsandbox.cli.streams import print_lines
from gwsandbox.model.errors import CgroupError, SandboxError
from gwsandbox.model.hardening import ENFORCED as FULLY
from gwsandbox.model.hardening import MECHANISMS
from gwsandbox.model.limits import OPTIONS
from gwsandbox.model.serialise import said_version
from gwsandbox.model.text import one_line

Findings = Mapping[str, "list[Finding] | SandboxError"]

ENFORCED, DEGRADED, NOTHING = 0, 1, 2
_SUMMARY = {
    ENFORCED: "Every limit is enforced.",
    DEGRADED: "Some limits are degraded: they are held, but less than fully, or not at all; see above.",
    NOTHING: "No limit can be enforced here.",
}


def examine(*, as_json: bool) -> int:
    """Run the probes, inspect the host, and print the findings; the exit code."""
    findings = dict(each_backend())
    refused = findings["cgroup"]
    host = inspect_host(refused if isinstance(refused, CgroupError) else None)
    code = _exit_code(findings)
    held = probe_hardening()
    if as_json:
        print_lines(json.dumps(_as_object(findings, held, host, code), indent=2))
    else:
        print_lines("\n".join(_screen(findings, held, host, code)))
    return code


def _exit_code(findings: Findings) -> int:
    """The exit code for the backend that ``--backend auto`` takes: the first that is available."""
    found = next((found for found in findings.values() if not isinstance(found, SandboxError)), [])
    if all(finding.status == "enforced" for finding in found) and found:
        return ENFORCED
    return NOTHING if all(finding.status == "not held" for finding in found) else DEGRADED


def _system() -> str:
    who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    return f"Linux {platform.release()}, Python {platform.python_version()}, as {who}"


def _screen(findings: Findings, held: Mapping[str, str], host: Host, code: int) -> Iterator[str]:
    yield f"gwsandbox {gwsandbox.__version__} on {_system()}"
    for backend, found in findings.items():
        yield ""
        if isinstance(found, SandboxError):
            yield f"backend {backend}: not available: {one_line(str(found))}"
            continue
        yield f"backend {backend}:"
        for finding in found:
            text = ": ".join(filter(None, [finding.by, finding.why]))
            yield f"  {OPTIONS[finding.limit]:<15} {finding.status:<9} {one_line(text)}"
    yield ""
    yield "hardening:"
    yield from _hardening_lines(held)
    yield ""
    yield from (f"{name + ':':<14} {value}" for name, value in host.facts.items())
    for why, lines in host.advice:
        yield ""
        yield f"Remedy: {why}"
        yield from (f"    {line}" for line in lines)
    yield ""
    yield _SUMMARY[code]


def _hardening_lines(held: Mapping[str, str]) -> Iterator[str]:
    """What holds fully together, and a line for each other mechanism, with the reason."""
    full = [name for name in MECHANISMS if held.get(name) == FULLY]
    yield from textwrap.wrap(", ".join(full), 100, initial_indent="  enforced: ", subsequent_indent=" " * 12)
    yield from (f"  {name:<18} {one_line(held[name])}" for name in MECHANISMS if held.get(name, FULLY) != FULLY)


def _as_object(findings: Findings, held: Mapping[str, str], host: Host, code: int) -> dict[str, Any]:
    return {
        "report": said_version("doctor"),
        "status": {ENFORCED: "enforced", DEGRADED: "degraded", NOTHING: "nothing"}[code],
        "system": _system(),
        "backends": {
            backend: {"available": False, "reason": str(found)}
            if isinstance(found, SandboxError)
            else {"available": True, "limits": {finding.limit: asdict(finding) for finding in found}}
            for backend, found in findings.items()
        },
        "hardening": held,
        "host": host.facts,
        "advice": [{"why": why, "lines": lines} for why, lines in host.advice],
    }
