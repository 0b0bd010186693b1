"""``gwsandbox clean``: removes the cgroups of dead runs, and nothing of a living one."""

from __future__ import annotations

import os
import re

from gwsandbox.backends.cgroup import run_group
from gwsandbox.backends.cgroup.delegation import MOUNT, RUN_NAME
from gwsandbox.cli.messages import OWN_FAILURE, say
from gwsandbox.cli.streams import print_lines
from gwsandbox.model.errors import CgroupError
from gwsandbox.model.text import shown


def clean_up() -> int:
    """Remove every run group in the hierarchy whose owner is dead; the exit code."""
    failed = False
    found = 0
    for parent in _parents():
        for path in run_group.leftovers(parent):
            found += 1
            try:
                run_group.destroy(path)
            except (CgroupError, OSError) as error:
                failed = True
                say(f"{shown(path)} cannot be removed: {error}; try it as the owner of the cgroup, or as root")
            else:
                print_lines(f"removed {shown(path)}")
    if not found:
        print_lines("nothing was left behind")
    return OWN_FAILURE if failed else 0


def _parents() -> list[str]:
    """The cgroups that hold run groups."""
    if not os.path.exists(f"{MOUNT}/cgroup.controllers"):
        return []
    found = []
    for path, folders, _ in os.walk(MOUNT):
        runs = [name for name in folders if re.fullmatch(RUN_NAME, name)]
        if runs:
            found.append(path)
    return found
