"""``gwsandbox clean``: removes the cgroups that killed supervisors left behind, and nothing that is alive."""

from __future__ import annotations

import os
import re

from gwsandbox.backends.cgroup import run_group
from gwsandbox.backends.cgroup.delegation import MOUNT, RUN_NAME
from gwsandbox.cli.messages import OWN_FAILURE, say
from gwsandbox.model.errors import CgroupError
from gwsandbox.model.text import shown


def clean_up() -> int:
    """Remove every run group whose owner is dead, wherever it is in the hierarchy; the exit code."""
    failed = False
    found = 0
    for parent in _parents():
        for path in run_group.leftovers(parent):
            found += 1
            try:
                run_group.destroy(path)
            except (CgroupError, OSError) as error:
                failed = True
                say(f"{shown(path)} cannot be removed: {error}; try it as the user that it belongs to, or as root")
            else:
                print(f"removed {shown(path)}")
    if not found:
        print("nothing was left behind")
    return OWN_FAILURE if failed else 0


def _parents() -> list[str]:
    """The cgroups that hold run groups. Those inside of run groups are the groups' own."""
    if not os.path.exists(f"{MOUNT}/cgroup.controllers"):
        return []
    found = []
    for path, folders, _ in os.walk(MOUNT):
        runs = [name for name in folders if re.fullmatch(RUN_NAME, name)]
        if runs:
            found.append(path)
    return found
