"""Whether this host has the cgroup v2 that tests need: exit code 0, or 3 with the reason on stdout.

A module, and no line in a shell program, so that the type checker sees what it imports.
"""

import sys

from gwsandbox.backends.cgroup.backend import CgroupBackend
from gwsandbox.model.errors import CgroupError


def main() -> int:
    """Look for a cgroup that can be delegated; the process's exit code."""
    try:
        CgroupBackend.find()
    except CgroupError as error:
        print(error)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
