"""``gwsandbox doctor``: what this host can enforce, why not the rest, and what mends that."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import gwsandbox
from gwsandbox.cli.doctor.host import Host, look
from gwsandbox.cli.doctor.probes import Verdict, each_backend
from gwsandbox.cli.options import FLAGS
from gwsandbox.model.errors import CgroupError, SandboxError
from gwsandbox.model.text import one_line

Findings = Mapping[str, "list[Verdict] | SandboxError"]

ENFORCED, DEGRADED, NOTHING = 0, 1, 2
_SUMMARY = {
    ENFORCED: "Every limit is enforced.",
    DEGRADED: "Some limits are degraded: they are held, but less than fully, or not at all; see above.",
    NOTHING: "No limit can be enforced here.",
}


def examine(*, as_json: bool) -> int:
    """Run the probes, look at the host, and print what came of it; the exit code."""
    findings = dict(each_backend())
    refused = findings["cgroup"]
    host = look(refused if isinstance(refused, CgroupError) else None)
    code = _exit_code(findings)
    if as_json:
        print(json.dumps(_as_object(findings, host, code), indent=2))
    else:
        print("\n".join(_screen(findings, host, code)))
    return code


def _exit_code(findings: Findings) -> int:
    """Of what ``--backend auto`` takes: the first that can be had."""
    verdicts = next((found for found in findings.values() if not isinstance(found, SandboxError)), [])
    if all(verdict.status == "enforced" for verdict in verdicts) and verdicts:
        return ENFORCED
    return NOTHING if all(verdict.status == "not held" for verdict in verdicts) else DEGRADED


def _system() -> str:
    who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    return f"Linux {platform.release()}, Python {platform.python_version()}, as {who}"


def _screen(findings: Findings, host: Host, code: int) -> Iterator[str]:
    yield f"gwsandbox {gwsandbox.__version__} on {_system()}"
    for backend, found in findings.items():
        yield ""
        if isinstance(found, SandboxError):
            yield f"backend {backend}: cannot be had: {one_line(str(found))}"
            continue
        yield f"backend {backend}:"
        for verdict in found:
            told = ": ".join(filter(None, [verdict.by, verdict.why]))
            yield f"  {FLAGS[verdict.limit]:<15} {verdict.status:<9} {one_line(told)}"
    yield ""
    yield from (f"{name + ':':<14} {value}" for name, value in host.facts.items())
    for why, lines in host.advice:
        yield ""
        yield f"To mend it, {why}"
        yield from (f"    {line}" for line in lines)
    yield ""
    yield _SUMMARY[code]


def _as_object(findings: Findings, host: Host, code: int) -> dict[str, Any]:
    return {
        "status": {ENFORCED: "enforced", DEGRADED: "degraded", NOTHING: "nothing"}[code],
        "system": _system(),
        "backends": {
            backend: {"available": False, "reason": str(found)}
            if isinstance(found, SandboxError)
            else {"available": True, "limits": {verdict.limit: asdict(verdict) for verdict in found}}
            for backend, found in findings.items()
        },
        "host": host.facts,
        "advice": [{"why": why, "lines": lines} for why, lines in host.advice],
    }
