"""The cgroup backend: opens a fresh leaf for each attempt below a run group of its own."""

from __future__ import annotations

import contextlib
import os
from typing import Self

from gwsandbox.backends.cgroup import files, remedies, run_group, subtree
from gwsandbox.backends.cgroup.delegation import (
    MOUNT,
    DelegatedRoot,
    NotDelegated,
    find_root,
    limits_of_own_unit,
    usable,
)
from gwsandbox.backends.cgroup.leaf import Leaf, Place
from gwsandbox.backends.descendants import BackendWithOrphans
from gwsandbox.linux import systemd_scope
from gwsandbox.model.errors import CgroupError
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Enforcement

_HELD_BY = {
    "memory": "memory.max",
    "swap": "memory.swap.max",
    "pids": "pids.max",
    "cpus": "cpu.max",
    "cpu_seconds": "cpu.stat + RLIMIT_CPU",
    "wall_seconds": "deadline + SIGKILL",
    "open_files": "RLIMIT_NOFILE",
    "file_size": "RLIMIT_FSIZE",
    "output": "supervisor",
}


class CgroupBackend(BackendWithOrphans):
    """Limits held by cgroup v2, one leaf per attempt under ``root``.

    ``remark`` says what the user should know of where that is; "" where there is nothing to say.
    """

    name = "cgroup"
    may_refuse = True

    def __init__(self, root: DelegatedRoot | None = None) -> None:
        """Leaves under ``root``; where it is ``None``, under a scope that ``prepare`` asks of systemd."""
        super().__init__()
        self.remark = ""
        self.in_scope = False
        self._root = root
        self._path = ""
        self._folder = -1
        self._controllers: frozenset[str] = frozenset()
        self._total_memory = 0
        self._opened = 0
        self._enforcements: dict[tuple[str, ...], Enforcement] = {}

    @classmethod
    def find(cls) -> Self:
        """A backend for this process: its delegated root, or systemd where that can be asked. Changes nothing.

        Raises:
            CgroupError: There is neither; says why and what to do.
        """
        try:
            return cls(find_root())
        except NotDelegated as error:
            if why := "what it gives could not be written" if remedies.is_read_only() else systemd_scope.why_none():
                error.step += f", and systemd gives no scope: {why}"
                raise
            found = cls()
            if limits := limits_of_own_unit():
                unit, names = limits
                found.remark = (
                    f"the unit {unit} limits {' and '.join(names)}, and tasks run in a scope beside it that has the "
                    "same limits for itself: to have one limit over both, set Delegate=yes in the unit"
                )
            return found

    def prepare(self, total_memory: int = 0) -> str:
        """Open this run's group, in a scope of systemd's where nothing is delegated; sweep what dead owners left.

        Raises:
            CgroupError: The kernel or systemd refused.
        """
        root = self._root
        if root is None:
            root = usable(MOUNT + systemd_scope.start_scope())
            self.in_scope = True
            run_group.sweep_scopes(os.path.dirname(root.path))
        else:
            run_group.sweep(root.path)
        self._path, self._folder = run_group.open_run_group(root)
        self._controllers = root.controllers
        if total_memory:
            self._limit_group(total_memory)
        return self._path

    def _limit_group(self, total_memory: int) -> None:
        """Limit what all leaves have together; no swap beyond that, as for a leaf."""
        self._total_memory = total_memory
        try:
            files.write_if_there("memory.swap.max", "0", self._folder, "limit run", self._path)
            files.write("memory.max", str(total_memory), self._folder, "limit run", self._path)
        except BaseException:
            self.destroy()
            raise

    def adopt_group(self, group: str) -> None:
        self._path = group

    def descriptors(self) -> list[int]:
        return [*super().descriptors(), *([self._folder] if self._folder >= 0 else [])]

    def open(self, limits: Limits) -> Leaf:
        """A fresh leaf with ``limits`` written.

        Raises:
            CgroupError: The kernel refused, or a limit has no controller to hold it.
        """
        requested = limits.requested()
        key = tuple(requested)
        if key not in self._enforcements:
            self._enforcements[key] = self._enforce(key)
        self._opened += 1
        name = f"task-{self._opened}"
        path = f"{self._path}/{name}"
        with contextlib.ExitStack() as undo:
            try:
                self._make(name)
                undo.callback(subtree.remove, name, self._folder, path)
                folder = files.open_folder(name, self._folder)
                undo.callback(os.close, folder)
            except OSError as error:
                raise CgroupError("open leaf", path=path, errno=error.errno or 0) from error
            place = Place(path, name, folder, self._folder, self._total_memory)
            leaf = Leaf(place, requested, self._enforcements[key], fork=self._fork, orphans=self._orphans)
            leaf.write_limits()
            undo.pop_all()
        return leaf

    def _make(self, name: str) -> None:
        try:
            os.mkdir(name, 0o755, dir_fd=self._folder)
        except PermissionError:  # a guest may be our user, and have taken the permissions from the run group
            files.give_back_permissions(self._folder)
            os.mkdir(name, 0o755, dir_fd=self._folder)

    def _enforce(self, requested: tuple[str, ...]) -> Enforcement:
        degraded = {}
        if "cpus" in requested and "cpu" not in self._controllers:
            degraded["cpus"] = "the cpu controller is not delegated: set Delegate=cpu memory pids in the unit"
        held = {name: _HELD_BY[name] for name in requested if name not in degraded}
        if "memory" in requested:
            held["swap"] = _HELD_BY["swap"]
        if self._total_memory:
            held["total_memory"] = "memory.max of the run group"
        return Enforcement(self.name, held, degraded)

    def destroy(self) -> None:
        """Kill and remove the run group with all its leaves.

        Raises:
            CgroupError: Something of it cannot be killed or removed.
        """
        if self._path:
            run_group.destroy(self._path)
            self._path = ""
        if self._folder >= 0:
            folder, self._folder = self._folder, -1
            os.close(folder)
