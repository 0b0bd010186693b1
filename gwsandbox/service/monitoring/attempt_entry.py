"""The journal entry at the end of every attempt."""

from __future__ import annotations

from collections.abc import Callable

from gwsandbox.model.text import shown
from gwsandbox.service.monitoring.journal import INFO, NOTICE, Journal
from gwsandbox.service.retry_policy import Fate
from gwsandbox.service.spool.job_database import AttemptEnd, Job

MESSAGE_ID = "b1c1f0a6d6a44c0b9f5f3a5d0e7a4c21"
"""Message id of these entries: ``journalctl MESSAGE_ID=…``."""

_FIELDS_OF_END = {
    "OUTCOME": "outcome",
    "DETAIL": "detail",
    "EXIT_STATUS": "exit_code",
    "PEAK": "memory_peak_bytes",
    "WALL_SECONDS": "wall_seconds",
    "CPU_SECONDS": "cpu_seconds",
}

_WORDS: dict[Fate, Callable[[Job], str]] = {
    Fate.PUBLISH: lambda job: f"done as {shown(job.target or '')}",
    Fate.TRY_AGAIN: lambda job: f"to be tried again after attempt {job.attempt}",
    Fate.QUARANTINE: lambda job: f"quarantined as {shown(job.target or '')} after attempt {job.attempt}",
    Fate.GIVE_BACK: lambda _job: "given back",
}


def write_entry(journal: Journal, job: Job, end: AttemptEnd, fate: Fate) -> None:
    """Write the entry of an attempt on ``job``."""
    text = f"{shown(job.name)}: {end.outcome}, {_WORDS[fate](job)}"
    journal.write(
        f"{text}: {end.detail}" if end.detail else text,
        INFO if fate is Fate.PUBLISH else NOTICE,
        MESSAGE_ID=MESSAGE_ID,
        FILE=_bytes(job.name),
        JOB=job.number,
        ATTEMPT=job.attempt,
        FATE=fate.name,
        TARGET=None if job.target is None else _bytes(job.target),
        **{field: getattr(end, name) for field, name in _FIELDS_OF_END.items()},
    )


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
