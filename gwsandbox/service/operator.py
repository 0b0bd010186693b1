"""What the operator of a spool can see and do: its status, and files that leave quarantine for another attempt."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gwsandbox.service.config.config import FolderConfig, ServiceConfig
from gwsandbox.service.spool import files, folders
from gwsandbox.service.spool.job_database import Job, JobDatabase
from gwsandbox.service.spool.names import is_for_us, names_like
from gwsandbox.service.spool.spool import REPORT_SUFFIX


class NotInQuarantine(Exception):
    """A file cannot leave quarantine; the text says why."""


@dataclass(frozen=True, slots=True)
class FileStatus:
    """A file in ``work/`` or ``quarantine/``.

    Args:
        name: Its name: in ``incoming/`` for a file in work, else in ``quarantine/``.
        state: State of its job; empty where the job database does not know it.
        attempts: How many attempts began on it.
        outcome: Outcome of the last attempt that ended; empty where none did.
        detail: Detail of that outcome.
    """

    name: str
    state: str = ""
    attempts: int = 0
    outcome: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """What is in a spool.

    Args:
        is_served: Whether a service works on it; ``None`` where this user may not know.
        incoming: How many files wait in ``incoming/``.
        unfinished: How many names there belong to producers that still write.
        folders: Names of folders there, which the service does not take.
        work: The files in work.
        done: How many files are in ``done/``.
        quarantine: The files in ``quarantine/``.
    """

    is_served: bool | None
    incoming: int
    unfinished: int
    folders: list[str]
    work: list[FileStatus]
    done: int
    quarantine: list[FileStatus]


def read_status(config: ServiceConfig) -> SpoolStatus:
    """Read the status of a spool. It need not be served.

    Raises:
        OSError: A folder cannot be read.
        SandboxError: The job database cannot be read.
    """
    there = list(_entries(config.folders.incoming))
    ours = [(name, is_folder) for name, is_folder in there if is_for_us(name)]
    jobs, quarantined = _read_database(config)
    return SpoolStatus(
        is_served=_is_served(config.folders),
        incoming=sum(not is_folder for _, is_folder in ours),
        unfinished=len(there) - len(ours),
        folders=sorted(name for name, is_folder in ours if is_folder),
        work=jobs,
        done=sum(1 for name, _ in _entries(config.folders.done) if is_for_us(name)),
        quarantine=[quarantined.get(name, FileStatus(name)) for name in _in_quarantine(config.folders)],
    )


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """The names in a folder, each with whether it is a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name, entry.is_dir(follow_symlinks=False)


def _in_quarantine(config: FolderConfig) -> list[str]:
    """The files there, without the reports beside them."""
    names = {name for name, _ in _entries(config.quarantine) if not name.startswith(".")}
    return sorted(name for name in names if not _is_report(name, names))


def _is_report(name: str, names: set[str]) -> bool:
    return name.endswith(REPORT_SUFFIX) and name.removesuffix(REPORT_SUFFIX) in names


def _is_served(config: FolderConfig) -> bool | None:
    try:
        return folders.is_locked(config.work)
    except PermissionError:
        return None


def _read_database(config: ServiceConfig) -> tuple[list[FileStatus], dict[str, FileStatus]]:
    """The files in work; and those in quarantine by their name there."""
    if not os.path.exists(config.database):
        return [], {}
    database = JobDatabase(config.database)
    try:
        work = [_status(database, job, job.name) for job in database.unfinished()]
        found = [(job.target or job.name, job) for job in database.quarantined()]
        return work, {name: _status(database, job, name) for name, job in found}
    finally:
        database.close()


def _status(database: JobDatabase, job: Job, name: str) -> FileStatus:
    ended = [row for row in database.attempts(job) if row.outcome is not None]
    if not ended:
        return FileStatus(name, job.state.name, job.attempt)
    return FileStatus(name, job.state.name, job.attempt, ended[-1].outcome or "", ended[-1].detail or "")


# --- out of quarantine ----------------------------------------------------------------------------------


def quarantined_files(config: ServiceConfig) -> list[str]:
    """The names of the files in ``quarantine/``."""
    return _in_quarantine(config.folders)


def requeue(config: ServiceConfig, name: str) -> str:
    """Move a file from ``quarantine/`` back to ``incoming/``, as if somebody had just delivered it.

    Returns:
        Its name there.

    Raises:
        NotInQuarantine: There is no such file.
        OSError: It cannot be moved.
    """
    _check(config, name)
    return _move_back(config.folders, name, name_candidates(name))


def retry(config: ServiceConfig, name: str) -> str:
    """Give a file in ``quarantine/`` one more attempt: it keeps its job, and its earlier attempts count.

    Returns:
        Its name in ``incoming/``.

    Raises:
        NotInQuarantine: There is no such file, or the job database does not know it.
        OSError: It cannot be moved.
        SandboxError: The job database cannot be opened.
    """
    _check(config, name)
    if not os.path.exists(config.database):
        raise NotInQuarantine(f"{name}: there is no job database {config.database}; requeue the file instead")
    database = JobDatabase(config.database)
    try:
        job = next((job for job in database.quarantined() if job.target == name), None)
        if job is None:
            raise NotInQuarantine(f"{name}: the job database does not know it; requeue the file instead")
        for target in name_candidates(job.name):
            reopened = database.reopen(job, target)
            try:
                return _move_back(config.folders, name, [target])
            except FileExistsError:
                job = database.quarantine_again(reopened, name)
            except OSError:
                database.quarantine_again(reopened, name)
                raise
    finally:
        database.close()
    raise AssertionError


def _check(config: ServiceConfig, name: str) -> None:
    if name not in _in_quarantine(config.folders):
        raise NotInQuarantine(f"{name}: there is no such file in {config.folders.quarantine}")


def name_candidates(name: str) -> Iterator[str]:
    """Names for a file that goes back to ``incoming/``, best first."""
    return names_like(name, 0)


def _move_back(config: FolderConfig, name: str, targets: Iterator[str] | Sequence[str]) -> str:
    """Move a file to ``incoming/`` under the first of ``targets`` that is free, and remove its report."""
    source = f"{config.quarantine}/{name}"
    for target in targets:
        try:
            files.move(source, f"{config.incoming}/{target}")
        except FileExistsError:
            continue
        files.sync(config.incoming)
        if os.path.lexists(f"{source}{REPORT_SUFFIX}"):
            os.unlink(f"{source}{REPORT_SUFFIX}")
        return target
    raise FileExistsError(f"{config.incoming}/{name}")
