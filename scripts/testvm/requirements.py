"""What the machine's virtual environment has to hold, out of pyproject.toml."""

import os
import re
import tomllib
from pathlib import Path


def read_requirements(pyproject: Path) -> list[str]:
    """What the project and its tests depend on, and the extras that GWSANDBOX_VM_EXTRAS names.

    An extra may refer to others of the project (`gwsandbox[service]`); the result holds what those stand for.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    extras: dict[str, list[str]] = project.get("optional-dependencies", {})
    found: list[str] = []
    chosen = ["test", *os.environ.get("GWSANDBOX_VM_EXTRAS", "").replace(",", " ").split()]
    queue: list[str] = [*project.get("dependencies", []), *(line for extra in chosen for line in extras.get(extra, []))]
    own = re.compile(rf"{re.escape(project['name'])}\[([^\]]+)\]")
    while queue:
        line = queue.pop(0)
        if line in found:
            continue
        found.append(line)
        if others := own.match(line):
            for extra in others[1].split(","):
                queue.extend(extras.get(extra.strip(), []))
    return sorted(line for line in found if not own.match(line))
