"""The cgroup backend: opens a fresh leaf for each attempt below a run group of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Self

from gwsandbox.backends.cgroup import run_group
from gwsandbox.backends.cgroup.delegation import MOUNT, DelegatedRoot, NotDelegated, find_root, usable
from gwsandbox.backends.cgroup.leaf import ForkMemory, Leaf
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


class CgroupBackend:
    """Limits held by cgroup v2, one leaf per attempt under ``root``."""

    name = "cgroup"
    needs_subreaper = False
    may_refuse = True

    def __init__(self, root: DelegatedRoot | None = None) -> None:
        """Leaves under ``root``; where it is ``None``, under a scope that ``prepare`` asks of systemd."""
        self._root = root
        self._path = ""
        self._folder = -1
        self._controllers: frozenset[str] = frozenset()
        self._opened = 0
        self._enforcements: dict[tuple[str, ...], Enforcement] = {}
        self._fork = ForkMemory()

    @classmethod
    def find(cls) -> Self:
        """A backend for this process: its delegated root, or systemd where that can be asked. Changes nothing.

        Raises:
            CgroupError: There is neither; says why and what mends it.
        """
        try:
            return cls(find_root())
        except NotDelegated as error:
            if why := systemd_scope.why_none():
                error.step += f"; and no scope of systemd's can be had: {why}"
                raise
            return cls()

    def prepare(self) -> str:
        """Open this run's group, in a scope of systemd's where nothing is delegated; sweep what dead owners left.

        Raises:
            CgroupError: The kernel or systemd refused.
        """
        root = self._root
        if root is None:
            root = usable(MOUNT + systemd_scope.start_scope(os.getpid()))
            run_group.sweep_scopes(os.path.dirname(root.path))
        else:
            run_group.sweep(root.path)
        self._path, self._folder = run_group.open_run_group(root)
        self._controllers = root.controllers
        return self._path

    def adopt_group(self, group: str) -> None:
        self._path = group

    def adopt(self, zygote: int, has_births: Callable[[], bool]) -> None:
        """Nothing to do: it stays where the supervisor is."""

    def awaits_births(self) -> bool:
        """Never: what lives in a leaf is that leaf's."""
        return False

    def descriptors(self) -> list[int]:
        return [self._folder] if self._folder >= 0 else []

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
        try:
            os.mkdir(name, 0o755, dir_fd=self._folder)
        except OSError as error:
            raise CgroupError("open leaf", path=path, errno=error.errno or 0) from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.rmdir, name, dir_fd=self._folder)
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
            undo.callback(os.close, folder)
            leaf = Leaf(path, folder, requested, self._enforcements[key], self._fork)
            leaf.write_limits()
            undo.pop_all()
        return leaf

    def _enforce(self, requested: tuple[str, ...]) -> Enforcement:
        degraded = {}
        if "cpus" in requested and "cpu" not in self._controllers:
            degraded["cpus"] = "the cpu controller is not delegated: set Delegate=cpu memory pids in the unit"
        held = {name: _HELD_BY[name] for name in requested if name not in degraded}
        if "memory" in requested:
            held["swap"] = _HELD_BY["swap"]
        return Enforcement(self.name, held, degraded)

    def destroy(self) -> None:
        """Kill and remove the run group with all its leaves."""
        if self._path:
            run_group.destroy(self._path)
            self._path = ""
        if self._folder >= 0:
            folder, self._folder = self._folder, -1
            os.close(folder)
